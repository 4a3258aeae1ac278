"""SD-DETR, Decoupled DETR (arXiv 2310.15955): Conditional DETR with separate decoder branches for class and box.

The losses are Align-DETR's. Importing this package makes `detectron2`, `detrex` and `projects.*` importable, as
importing `align_detr` does.
"""

import align_detr as _align_detr  # noqa: F401
