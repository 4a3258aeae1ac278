from detectron2.config import LazyCall as L
from detrex.layers import PositionEmbeddingSine
from detrex.modeling import HungarianMatcher, SetCriterion
from detrex.modeling.backbone.resnet import BasicStem, ResNet, make_stage
from projects.dab_detr.modeling import (
    DABDETR,
    DabDetrTransformer,
    DabDetrTransformerDecoder,
    DabDetrTransformerEncoder,
)
from projects.detr_common import loss_weights

model = L(DABDETR)(
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(make_stage)(depth=50, stride_in_1x1=False, norm="FrozenBN", res5_dilation=1),
        out_features=["res5"],
        freeze_at=1,
    ),
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
    criterion=L(SetCriterion)(
        num_classes="${..num_classes}",
        matcher=L(HungarianMatcher)(
            cost_class=2.0,
            cost_bbox=5.0,
            cost_giou=2.0,
            cost_class_type="focal_loss_cost",
            alpha=0.25,
            gamma=2.0,
        ),
        weight_dict=L(loss_weights)(
            loss_class=1.0,
            loss_bbox=5.0,
            loss_giou=2.0,
            num_decoder_layers="${...transformer.decoder.num_layers}",
            encoder=False,
            denoising=False,
        ),
        loss_class_type="focal_loss",
        alpha=0.25,
        gamma=2.0,
    ),
    aux_loss=True,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    freeze_anchor_box_centers=True,
    select_box_nums_for_evaluation=300,
)
