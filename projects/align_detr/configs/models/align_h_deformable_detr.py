from detectron2.config import LazyCall as L

from align_detr.modeling import AlignHDETRCriterion

from .supervision import hyperparameters, matcher

criterion = L(AlignHDETRCriterion)(num_classes="${..num_classes}", matcher=matcher, **hyperparameters)
