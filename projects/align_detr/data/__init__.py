"""Datasets: registered for a config, or converted to COCO's format."""

from .convert import Conversion, convert_dataset
from .registration import register_coco, register_tiny_coco

__all__ = ["Conversion", "convert_dataset", "register_coco", "register_tiny_coco"]
