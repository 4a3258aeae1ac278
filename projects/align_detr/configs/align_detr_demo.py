from detrkit.config.load import get_config

from .models.align_dino import criterion as _criterion

_baseline = get_config("baselines/dino_demo.py")

dataloader = _baseline.dataloader
lr_multiplier = _baseline.lr_multiplier
model = _baseline.model
optimizer = _baseline.optimizer
train = _baseline.train

_criterion.weight_dict = model.criterion.weight_dict
model.criterion = _criterion
# 1 instead of 2: fewer doubtful boxes have a score above the threshold for drawing.
model.criterion.gamma = 1.0

train.output_dir = "./output/align_detr_demo"
