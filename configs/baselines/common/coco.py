"""Shared settings of the published trainings on COCO: AdamW, ImageNet ResNet, 16 images per batch."""

from detectron2.config import LazyCall as L
from projects.detr_common import lr_factors

from ...common.data.coco_detr import dataloader
from ...common.optim import AdamW as optimizer
from ...common.train import train

optimizer.lr = 1e-4
optimizer.weight_decay = 1e-4
optimizer.betas = (0.9, 0.999)
optimizer.params.lr_factor_func = L(lr_factors)(backbone=0.1)

dataloader.train.total_batch_size = 16

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 0.1
train.clip_grad.params.norm_type = 2
