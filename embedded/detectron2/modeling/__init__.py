"""Backbones, postprocessing of detections, and test-time augmentation."""

from .backbone import SimpleFeaturePyramid, SwinTransformer, ViT, get_vit_lr_decay_rate
from .postprocessing import detector_postprocess
from .test_time_augmentation import DatasetMapperTTA

__all__ = [
    "DatasetMapperTTA",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "ViT",
    "detector_postprocess",
    "get_vit_lr_decay_rate",
]
