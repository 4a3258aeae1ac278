from detectron2.config import LazyCall as L
from projects.detr_common import lr_factors

from .....configs.common.coco_schedule import lr_multiplier_12ep as lr_multiplier
from .....configs.common.data.coco_detr import dataloader
from .....configs.common.optim import AdamW as optimizer
from .....configs.common.train import train
from .models.dino_r50 import model

model.device = "${train.device}"

optimizer.lr = 1e-4
optimizer.weight_decay = 1e-4
optimizer.betas = (0.9, 0.999)
optimizer.params.lr_factor_func = L(lr_factors)(backbone=0.1)

dataloader.train.total_batch_size = 16

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/dino_r50_4scale_12ep"
train.max_iter = 90000
train.eval_period = 5000
train.checkpointer.period = 5000
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 0.1
train.clip_grad.params.norm_type = 2
