from ..common.coco_schedule import lr_multiplier_12ep as lr_multiplier
from .common.coco import dataloader, optimizer, train
from .models.dino_vitdet import model

model.device = "${train.device}"

train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth"
train.output_dir = "./output/dino_vitdet_base_4scale_12ep"
train.max_iter = 90000
train.eval_period = 5000
train.checkpointer.period = 5000
