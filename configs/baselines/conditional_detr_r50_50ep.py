from ..common.coco_schedule import lr_multiplier_50ep as lr_multiplier
from .common.coco import dataloader, optimizer, train
from .models.conditional_detr_r50 import model

model.device = "${train.device}"

train.output_dir = "./output/conditional_detr_r50_50ep"
train.max_iter = 375000
train.eval_period = 7500
train.checkpointer.period = 7500
