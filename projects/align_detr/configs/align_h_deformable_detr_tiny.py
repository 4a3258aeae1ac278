from align_detr.modeling import AlignHDeformableDETR
from detrkit.config.load import get_config

from .models.align_h_deformable_detr import criterion as _criterion

_baseline = get_config("baselines/h_deformable_detr_tiny.py")

dataloader = _baseline.dataloader
lr_multiplier = _baseline.lr_multiplier
model = _baseline.model
optimizer = _baseline.optimizer
train = _baseline.train

_criterion.weight_dict = model.criterion.weight_dict
model.criterion = _criterion
model._target_ = AlignHDeformableDETR

# Each supervision uses its own best learning rate; see docs/searches.csv for the search.
optimizer.lr = 8e-4
train.output_dir = "./output/align_h_deformable_detr_tiny"
