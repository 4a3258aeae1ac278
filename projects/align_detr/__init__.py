"""Align-DETR (arXiv 2304.07527): IoU-aware classification targets and mixed matching for DETR detectors.

Importing this package makes `detectron2`, `detrex` and `projects.*` importable: the installed ones where there are
any, the embedded engine's for the rest (see `_platform`).
"""

from ._platform import resolve as _resolve

__version__ = "0.1.0"

_resolve()
