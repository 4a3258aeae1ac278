from detectron2.config import LazyCall as L

from align_detr.modeling import AlignDINOCriterion

from .supervision import hyperparameters, matcher

criterion = L(AlignDINOCriterion)(num_classes="${..num_classes}", matcher=matcher, **hyperparameters)
