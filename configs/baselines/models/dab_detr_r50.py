from detectron2.config import LazyCall as L
from detrex.layers import PositionEmbeddingSine
from projects.dab_detr.modeling import (
    DABDETR,
    DabDetrTransformer,
    DabDetrTransformerDecoder,
    DabDetrTransformerEncoder,
)

from .single_scale import backbone as _backbone
from .single_scale import criterion as _criterion

model = L(DABDETR)(
    backbone=_backbone,
    position_embedding=L(PositionEmbeddingSine)(
        num_pos_feats=128,  # half of embed_dim
        temperature=20,
        normalize=True,
    ),
    in_features=["res5"],
    in_channels=2048,
    transformer=L(DabDetrTransformer)(
        encoder=L(DabDetrTransformerEncoder)(
            embed_dim="${...embed_dim}",
            num_heads=8,
            attn_dropout=0.0,
            feedforward_dim=2048,
            ffn_dropout=0.0,
            num_layers=6,
        ),
        decoder=L(DabDetrTransformerDecoder)(
            embed_dim="${...embed_dim}",
            num_heads=8,
            attn_dropout=0.0,
            feedforward_dim=2048,
            ffn_dropout=0.0,
            num_layers=6,
            modulate_hw_attn=True,
        ),
        num_patterns=0,
    ),
    embed_dim=256,
    num_classes=80,
    num_queries=300,
    criterion=_criterion,
    aux_loss=True,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    freeze_anchor_box_centers=True,
    select_box_nums_for_evaluation=300,
)
