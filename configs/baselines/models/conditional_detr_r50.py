import torch.nn as nn
from detectron2.config import LazyCall as L
from detrex.layers import PositionEmbeddingSine
from projects.conditional_detr.modeling import (
    ConditionalDETR,
    ConditionalDetrTransformer,
    ConditionalDetrTransformerDecoder,
    ConditionalDetrTransformerEncoder,
)

from .single_scale import backbone as _backbone
from .single_scale import criterion as _criterion

_criterion.weight_dict.loss_class = 2.0

model = L(ConditionalDETR)(
    backbone=_backbone,
    in_features=["res5"],
    in_channels=2048,
    position_embedding=L(PositionEmbeddingSine)(
        num_pos_feats=128,  # half of embed_dim
        temperature=10000,
        normalize=True,
    ),
    transformer=L(ConditionalDetrTransformer)(
        encoder=L(ConditionalDetrTransformerEncoder)(
            embed_dim="${...embed_dim}",
            num_heads=8,
            attn_dropout=0.1,
            feedforward_dim=2048,
            ffn_dropout=0.1,
            activation=L(nn.ReLU)(),
            num_layers=6,
            post_norm=False,
        ),
        decoder=L(ConditionalDetrTransformerDecoder)(
            embed_dim="${...embed_dim}",
            num_heads=8,
            attn_dropout=0.1,
            feedforward_dim=2048,
            ffn_dropout=0.1,
            activation=L(nn.ReLU)(),
            num_layers=6,
            post_norm=True,
            return_intermediate=True,
        ),
    ),
    embed_dim=256,
    num_classes=80,
    num_queries=300,
    criterion=_criterion,
    aux_loss=True,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    select_box_nums_for_evaluation=300,
)
