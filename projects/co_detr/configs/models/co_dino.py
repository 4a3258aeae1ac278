from detectron2.config import LazyCall as L

from co_detr.heads import ATSSHead, FasterRCNNHead
from co_detr.heads.faster_rcnn import ProposalNetwork
from co_detr.modeling import CoDINOCriterion, Collaboration, auxiliary_heads

from ....align_detr.configs.models.supervision import matcher

collaboration = L(Collaboration)(
    embed_dim="${..embed_dim}",
    strides=[8, 16, 32, 64, 128],
    num_decoder_layers="${..transformer.decoder.num_layers}",
    lambda_heads=2.0,
    lambda_queries=1.0,
    max_positives=300,
    min_queries=9,
    heads=L(auxiliary_heads)(
        number=None,
        atss=L(ATSSHead)(
            embed_dim="${...embed_dim}",
            num_classes="${....num_classes}",
            strides="${...strides}",
            anchor_scale=8.0,
            num_candidates=9,
        ),
        faster_rcnn=L(FasterRCNNHead)(
            embed_dim="${...embed_dim}",
            num_classes="${....num_classes}",
            proposals=L(ProposalNetwork)(
                embed_dim="${..embed_dim}",
                anchor_scale=4.0,
                num_samples=256,
                num_before=4000,
                num_after=1000,
                nms_iou=0.7,
            ),
            hidden_dim=1024,
            num_samples=512,
            positive_share=0.25,
        ),
    ),
)

criterion = L(CoDINOCriterion)(
    num_classes="${..num_classes}",
    matcher=matcher,
    alpha=0.25,
    gamma=2.0,
    tau=1.5,
    k=None,
    loss_class_type="quality_focal_loss",
)
