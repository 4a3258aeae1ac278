"""Puts the packages of this checkout on the path, for the tools beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "projects"))

try:
    import align_detr  # noqa: F401  (its import makes detectron2, detrex and projects.* importable)
except (ImportError, ValueError) as problem:
    sys.exit(f"error: {problem}")
