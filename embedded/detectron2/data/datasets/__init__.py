"""Annotation formats of COCO and LVIS, and these datasets under their registered names."""

from . import builtin as _builtin  # noqa: F401  (registers coco_2017_… and lvis_v1_…)
from .coco import load_coco_json, register_coco_instances
from .lvis import load_lvis_json, register_lvis_instances

__all__ = ["load_coco_json", "load_lvis_json", "register_coco_instances", "register_lvis_instances"]
