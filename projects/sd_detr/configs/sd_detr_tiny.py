from detrkit.config.load import get_config
from sd_detr.modeling import SDDETR, SDDetrTransformer

from .models.sd_detr import criterion as _criterion
from .models.sd_detr import decoder as _decoder

_baseline = get_config("baselines/conditional_detr_tiny.py")

dataloader = _baseline.dataloader
lr_multiplier = _baseline.lr_multiplier
model = _baseline.model
optimizer = _baseline.optimizer
train = _baseline.train

_criterion.weight_dict = model.criterion.weight_dict
model.criterion = _criterion
model._target_ = SDDETR
model.transformer._target_ = SDDetrTransformer
model.transformer.decoder.update(_decoder)

train.output_dir = "./output/sd_detr_tiny"
