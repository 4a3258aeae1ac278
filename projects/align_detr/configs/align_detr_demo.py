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
# Instead of 2: leaves fewer doubtful boxes above the threshold of drawn boxes, see docs/evidence.md.
model.criterion.gamma = 1.0

train.output_dir = "./output/align_detr_demo"
