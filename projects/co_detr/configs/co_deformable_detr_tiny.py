from co_detr.modeling import CoDeformableDETR
from detrkit.config.load import get_config

from .models.co_deformable_detr import collaboration as _collaboration
from .models.co_deformable_detr import criterion as _criterion

_baseline = get_config("baselines/h_deformable_detr_tiny.py")

dataloader = _baseline.dataloader
lr_multiplier = _baseline.lr_multiplier
model = _baseline.model
optimizer = _baseline.optimizer
train = _baseline.train

_criterion.weight_dict = model.criterion.weight_dict
model.criterion = _criterion
model._target_ = CoDeformableDETR
model.collaboration = _collaboration
model.num_queries_one2many = 0
model.k_one2many = 0

# Small images and a small model: anchors as large as those of stride 4 at full size, and smaller heads.
model.collaboration.strides = [8, 16, 32, 64]
model.collaboration.heads.atss.anchor_scale = 4.0
model.collaboration.heads.faster_rcnn.hidden_dim = 128
model.collaboration.heads.faster_rcnn.num_samples = 64
model.collaboration.heads.faster_rcnn.proposals.anchor_scale = 2.0
model.collaboration.heads.faster_rcnn.proposals.num_before = 400
model.collaboration.heads.faster_rcnn.proposals.num_after = 100
model.collaboration.heads.faster_rcnn.proposals.num_samples = 64

train.output_dir = "./output/co_deformable_detr_tiny"
