"""Puts the packages of this checkout on the path, for `train_net.py`, and for tests that start programs."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "projects"), str(_ROOT)]

try:
    import align_detr  # noqa: F401  (its import makes detectron2, detrex and projects.* importable)
except (ImportError, ValueError) as problem:
    sys.exit(f"error: {problem}")
