from detectron2.config import LazyCall as L

from sd_detr.modeling import SDDetrTransformerDecoder, SDSetCriterion

from ....align_detr.configs.models.supervision import hyperparameters, matcher

decoder = dict(
    _target_=SDDetrTransformerDecoder, split_attention=True, task_queries=True, num_points=8, exchange="mean"
)

criterion = L(SDSetCriterion)(align=True, num_classes="${..num_classes}", matcher=matcher, **hyperparameters)
