"""DINO on any model of timm that has feature maps of strides 8, 16 and 32: change `model_name`."""

from ..common.coco_schedule import lr_multiplier_12ep as lr_multiplier
from .common.coco import dataloader, optimizer, train
from .models.dino_timm import model

model.backbone.backbone.model_name = "convnext_tiny.fb_in22k"
model.device = "${train.device}"

train.init_checkpoint = "timm://${model.backbone.backbone.model_name}"
train.output_dir = "./output/dino_timm_4scale_12ep"
train.max_iter = 90000
train.eval_period = 5000
train.checkpointer.period = 5000
