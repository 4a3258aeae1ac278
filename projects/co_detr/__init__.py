"""Co-DETR (arXiv 2211.12860) on DINO and Deformable DETR, with any loss of Align-DETR.

Auxiliary heads and positive queries are used in training only.

Importing this package makes `detectron2`, `detrex` and `projects.*` importable, as importing `align_detr` does.
"""

import align_detr as _align_detr  # noqa: F401
