from co_detr.modeling import CoDINO
from detrkit.config.load import get_config

from .models.co_dino import collaboration as _collaboration
from .models.co_dino import criterion as _criterion

_baseline = get_config("baselines/dino_lite0_4scale.py")

dataloader = _baseline.dataloader
lr_multiplier = _baseline.lr_multiplier
model = _baseline.model
optimizer = _baseline.optimizer
train = _baseline.train

_criterion.weight_dict = model.criterion.weight_dict
model.criterion = _criterion
model._target_ = CoDINO
model.collaboration = _collaboration

# The images have a third of the usual size: smaller anchors, and smaller heads to suit the small model.
model.collaboration.heads.atss.anchor_scale = 4.0
model.collaboration.heads.faster_rcnn.hidden_dim = 256
model.collaboration.heads.faster_rcnn.num_samples = 128
model.collaboration.heads.faster_rcnn.proposals.anchor_scale = 2.0
model.collaboration.heads.faster_rcnn.proposals.num_before = 1000
model.collaboration.heads.faster_rcnn.proposals.num_after = 300
model.collaboration.heads.faster_rcnn.proposals.num_samples = 128

# No other rate was tried.
optimizer.lr = 4e-4

train.output_dir = "./output/co_dino_lite0_4scale"
