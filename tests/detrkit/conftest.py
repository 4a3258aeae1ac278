"""Puts the repository root on the path, where `detrkit` lies, and what these tests share."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE / "weights")]
