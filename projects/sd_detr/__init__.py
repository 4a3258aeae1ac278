"""SD-DETR, Decoupled DETR (arXiv 2310.15955): Conditional DETR whose decoder classifies and localises with queries and
attention of their own, supervised by Align-DETR's losses.

Importing this package makes `detectron2`, `detrex` and `projects.*` importable, as `align_detr` does.
"""

import align_detr as _align_detr  # noqa: F401
