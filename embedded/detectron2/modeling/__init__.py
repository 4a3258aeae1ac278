"""Backbones, and postprocessing of detections."""

from .backbone import SimpleFeaturePyramid, SwinTransformer, ViT, get_vit_lr_decay_rate
from .postprocessing import detector_postprocess

__all__ = ["SimpleFeaturePyramid", "SwinTransformer", "ViT", "detector_postprocess", "get_vit_lr_decay_rate"]
