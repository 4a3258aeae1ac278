"""From a checkpoint to use: `Detector` on pictures, from Python."""

from .detector import Detector
from .found import Found

__all__ = ["Detector", "Found"]
