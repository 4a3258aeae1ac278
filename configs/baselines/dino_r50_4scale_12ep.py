from ..common.coco_schedule import lr_multiplier_12ep as lr_multiplier
from .common.coco import dataloader, optimizer, train
from .models.dino_r50 import model

model.device = "${train.device}"

train.output_dir = "./output/dino_r50_4scale_12ep"
train.max_iter = 90000
train.eval_period = 5000
train.checkpointer.period = 5000
