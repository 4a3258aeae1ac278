from co_detr.modeling import CoDINO
from detrkit.config.load import get_config

from .models.co_dino import collaboration as _collaboration
from .models.co_dino import criterion as _criterion

_baseline = get_config("baselines/dino_swin_large_384_5scale_12ep.py")

dataloader = _baseline.dataloader
lr_multiplier = _baseline.lr_multiplier
model = _baseline.model
optimizer = _baseline.optimizer
train = _baseline.train

_criterion.weight_dict = model.criterion.weight_dict
model.criterion = _criterion
model._target_ = CoDINO
model.collaboration = _collaboration
model.collaboration.strides = [4, 8, 16, 32, 64, 128]
model.backbone.drop_path_rate = 0.3

train.init_checkpoint = (
    "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_large_patch4_window12_384_22k.pth"
)
train.output_dir = "./output/co_dino_swin_large_5scale_12ep"
