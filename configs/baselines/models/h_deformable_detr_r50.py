from detectron2.config import LazyCall as L
from detrex.modeling import HungarianMatcher
from projects.detr_common import all_queries, loss_weights
from projects.h_deformable_detr.modeling import (
    DeformableCriterion,
    HDeformableDETR,
    HDeformableDetrTransformer,
    HDeformableDetrTransformerDecoder,
    HDeformableDetrTransformerEncoder,
)

from .feature_pyramid import backbone, neck, position_embedding

model = L(HDeformableDETR)(
    backbone=backbone,
    position_embedding=position_embedding,
    neck=neck,
    transformer=L(HDeformableDetrTransformer)(
        encoder=L(HDeformableDetrTransformerEncoder)(
            embed_dim="${...embed_dim}",
            num_heads=8,
            feedforward_dim=2048,
            attn_dropout=0.0,
            ffn_dropout=0.0,
            num_layers=6,
            post_norm=False,
            num_feature_levels="${..num_feature_levels}",
        ),
        decoder=L(HDeformableDetrTransformerDecoder)(
            embed_dim="${...embed_dim}",
            num_heads=8,
            feedforward_dim=2048,
            attn_dropout=0.0,
            ffn_dropout=0.0,
            num_layers=6,
            return_intermediate=True,
            num_feature_levels="${..num_feature_levels}",
            look_forward_twice=True,
        ),
        num_feature_levels=4,
        as_two_stage="${..as_two_stage}",
        two_stage_num_proposals=L(all_queries)(
            one2one="${...num_queries_one2one}", one2many="${...num_queries_one2many}"
        ),
        mixed_selection="${..mixed_selection}",
    ),
    embed_dim=256,
    num_classes=80,
    num_queries_one2one=300,
    num_queries_one2many=1500,
    aux_loss=True,
    with_box_refine=True,
    as_two_stage=True,
    mixed_selection=True,
    k_one2many=6,
    lambda_one2many=1.0,
    criterion=L(DeformableCriterion)(
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
            loss_class=2.0,
            loss_bbox=5.0,
            loss_giou=2.0,
            num_decoder_layers="${...transformer.decoder.num_layers}",
            encoder=True,
        ),
        loss_class_type="focal_loss",
        alpha=0.25,
        gamma=2.0,
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    select_box_nums_for_evaluation=300,
)
