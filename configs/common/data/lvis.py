"""LVIS v1: COCO's images with 1203 classes; images of rare classes come more often."""

from detectron2.config import LazyCall as L
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import LVISEvaluator

from .coco_detr import dataloader

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
    )
)
dataloader.test.dataset.names = "lvis_v1_val"

dataloader.evaluator = L(LVISEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir=None, max_dets_per_image=300
)
