"""Backbone and neck of the deformable detectors: ResNet-50, and 1x1 projections of its last three stages."""

import torch.nn as nn
from detectron2.config import LazyCall as L
from detrex.layers import PositionEmbeddingSine, ShapeSpec
from detrex.modeling.backbone.resnet import BasicStem, ResNet, make_stage
from detrex.modeling.neck import ChannelMapper

backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
    stages=L(make_stage)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
    out_features=["res3", "res4", "res5"],
    freeze_at=1,
)

position_embedding = L(PositionEmbeddingSine)(
    num_pos_feats=128,  # half of embed_dim
    temperature=10000,
    normalize=True,
    offset=-0.5,
)

neck = L(ChannelMapper)(
    input_shapes={
        "res3": L(ShapeSpec)(channels=512),
        "res4": L(ShapeSpec)(channels=1024),
        "res5": L(ShapeSpec)(channels=2048),
    },
    in_features=["res3", "res4", "res5"],
    out_channels="${..embed_dim}",
    num_outs="${..transformer.num_feature_levels}",
    kernel_size=1,
    norm_layer=L(nn.GroupNorm)(num_groups=32, num_channels="${...embed_dim}"),
)
