"""COCO's annotation format, and COCO under its registered names."""

from . import builtin as _builtin  # noqa: F401  (registers coco_2017_train and coco_2017_val)
from .coco import load_coco_json, register_coco_instances

__all__ = ["load_coco_json", "register_coco_instances"]
