"""The workbench of this repository: train, evaluate, analyse and export any of its detectors.

Importing it imports `align_detr`, which makes `detectron2`, `detrex` and `projects.*` importable.
"""

import align_detr  # noqa: F401
