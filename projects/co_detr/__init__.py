"""Co-DETR, collaborative hybrid assignments (arXiv 2211.12860), on DINO: auxiliary heads and positive queries that only
training has, with the losses of Align-DETR's criterion to choose from.

Importing this package makes `detectron2`, `detrex` and `projects.*` importable, as `align_detr` does.
"""

import align_detr as _align_detr  # noqa: F401
