"""DINO with 5 million parameters for CPUs, on EfficientNet-Lite0: half the width and half the layers of `dino_r50`.

A real detrex's DINO supports only 256 channels: set `model.embed_dim=256 model.position_embedding.num_pos_feats=128`.
"""

from detectron2.config import LazyCall as L
from detrex.layers import ShapeSpec
from detrex.modeling.backbone import TimmBackbone
from projects.detr_common import freeze_timm, timm_pixel_mean, timm_pixel_std

from .dino_r50 import model

model.backbone = L(freeze_timm)(
    backbone=L(TimmBackbone)(model_name="tf_efficientnet_lite0", out_indices=[2, 3, 4]),
    stages=2,
    batch_norm=True,
)
model.pixel_mean = L(timm_pixel_mean)(model_name="${..backbone.backbone.model_name}")
model.pixel_std = L(timm_pixel_std)(model_name="${..backbone.backbone.model_name}")
model.neck.input_shapes = {
    "p2": L(ShapeSpec)(channels=40),
    "p3": L(ShapeSpec)(channels=112),
    "p4": L(ShapeSpec)(channels=320),
}
model.neck.in_features = ["p2", "p3", "p4"]
model.embed_dim = 128
model.position_embedding.num_pos_feats = 64
model.transformer.encoder.num_layers = 2
model.transformer.encoder.feedforward_dim = 512
model.transformer.decoder.num_layers = 3
model.transformer.decoder.feedforward_dim = 512
model.num_queries = 100
model.dn_number = 100
model.select_box_nums_for_evaluation = 100
