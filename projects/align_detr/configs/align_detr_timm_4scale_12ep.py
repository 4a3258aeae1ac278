"""Align-DETR on any model of timm that has feature maps of strides 8, 16 and 32: change `model_name`."""

from detrkit.config.load import get_config

from .models.align_dino import criterion as _criterion

_baseline = get_config("baselines/dino_timm_4scale_12ep.py")

dataloader = _baseline.dataloader
lr_multiplier = _baseline.lr_multiplier
model = _baseline.model
optimizer = _baseline.optimizer
train = _baseline.train

model.backbone.backbone.model_name = "convnext_tiny.fb_in22k"

_criterion.weight_dict = model.criterion.weight_dict
model.criterion = _criterion

train.output_dir = "./output/align_detr_timm_4scale_12ep"
