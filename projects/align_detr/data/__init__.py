"""Datasets: registered for a config, or converted to COCO's format."""

from .convert import Conversion, convert_dataset
from .registration import register_bccd, register_coco, register_own_datasets, register_tiny_coco

__all__ = [
    "Conversion",
    "convert_dataset",
    "register_bccd",
    "register_coco",
    "register_own_datasets",
    "register_tiny_coco",
]
