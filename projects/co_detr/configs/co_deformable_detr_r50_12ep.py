from co_detr.modeling import CoDeformableDETR
from detrkit.config.load import get_config

from .models.co_deformable_detr import collaboration as _collaboration
from .models.co_deformable_detr import criterion as _criterion

_baseline = get_config("baselines/h_deformable_detr_r50_two_stage_12ep.py")

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
model.select_box_nums_for_evaluation = 100

train.output_dir = "./output/co_deformable_detr_r50_12ep"
