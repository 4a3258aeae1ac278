"""Use a trained detector: `Detector`, exported files, ONNX."""

from .detections import Detections
from .detector import Detector

__all__ = ["Detector", "Detections"]
