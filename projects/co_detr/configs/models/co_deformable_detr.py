from detectron2.config import LazyCall as L

from co_detr.modeling import CoDeformableCriterion, ContentAndPosition

from ....align_detr.configs.models.supervision import matcher
from .co_dino import collaboration

collaboration.content = ContentAndPosition

criterion = L(CoDeformableCriterion)(
    num_classes="${..num_classes}",
    matcher=matcher,
    alpha=0.25,
    gamma=2.0,
    tau=1.5,
    k=None,
    loss_class_type="focal_loss",
)
