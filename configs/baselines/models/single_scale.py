"""Shared parts of the published detectors on one feature map: ResNet-50, and a focal loss on every decoder layer."""

from detectron2.config import LazyCall as L
from detrex.modeling import HungarianMatcher, SetCriterion
from detrex.modeling.backbone.resnet import BasicStem, ResNet, make_stage
from projects.detr_common import loss_weights

backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
    stages=L(make_stage)(depth=50, stride_in_1x1=False, norm="FrozenBN", res5_dilation=1),
    out_features=["res5"],
    freeze_at=1,
)

criterion = L(SetCriterion)(
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
)
