"""Align-DETR (arXiv 2304.07527): IoU-aware classification targets and mixed matching for DETR detectors.

Importing this package makes `detectron2`, `detrex` and `projects.*` importable. Installed packages are used first, the
embedded engine replaces missing ones (see `_platform`). `align_detr.Detector` is `detrkit.Detector`, which runs a
trained model on images.
"""

import sys
from pathlib import Path
from typing import Any

from ._former_names import register as _register_former_names
from ._platform import resolve as _resolve

__version__ = "0.1.0"
__all__ = ["Detector"]

try:
    _resolve()
except (ImportError, ValueError) as problem:
    # `align-detr` and `python -m align_detr` import this before their own error handling: print one line here.
    if Path(sys.argv[0]).stem in ("align-detr", "-m"):
        sys.exit(f"error: {problem}")
    raise
_register_former_names()


def __getattr__(name: str) -> Any:
    # Import PyTorch only when a detector is used.
    if name == "Detector":
        from detrkit.inference import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
