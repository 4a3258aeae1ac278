from detectron2.config import LazyCall as L

from align_detr.modeling import AlignSetCriterion

from .supervision import hyperparameters, matcher

criterion = L(AlignSetCriterion)(num_classes="${..num_classes}", matcher=matcher, **hyperparameters)
