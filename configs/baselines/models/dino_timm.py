"""DINO on a model of timm, whose name decides channels, feature maps and normalisation."""

from detectron2.config import LazyCall as L
from detrex.modeling.backbone import TimmBackbone
from projects.detr_common import (
    freeze_timm,
    timm_feature_names,
    timm_feature_shapes,
    timm_indices,
    timm_pixel_mean,
    timm_pixel_std,
)

from .dino_r50 import model

model.backbone = L(freeze_timm)(
    backbone=L(TimmBackbone)(
        model_name="convnext_tiny.fb_in22k",
        out_indices=L(timm_indices)(model_name="${..model_name}", strides=[8, 16, 32]),
    ),
    stages=1,
    batch_norm=True,
)
model.pixel_mean = L(timm_pixel_mean)(model_name="${..backbone.backbone.model_name}")
model.pixel_std = L(timm_pixel_std)(model_name="${..backbone.backbone.model_name}")
model.neck.input_shapes = L(timm_feature_shapes)(
    model_name="${...backbone.backbone.model_name}", strides=[8, 16, 32]
)
model.neck.in_features = L(timm_feature_names)(
    model_name="${...backbone.backbone.model_name}", strides=[8, 16, 32]
)
