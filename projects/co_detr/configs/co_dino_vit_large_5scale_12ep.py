"""Co-DINO on EVA-02 ViT-L. The published training started from weights trained on Objects365."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from co_detr.modeling.eva02 import layer_decay
from detrkit.config.load import get_config

from .models.co_dino_vit_large import model

_baseline = get_config("baselines/dino_r50_4scale_12ep.py")

dataloader = _baseline.dataloader
optimizer = _baseline.optimizer
train = _baseline.train

model.device = "${train.device}"

_sizes = list(range(480, 1537, 32))
dataloader.train.mapper.augmentation[1].short_edge_length = _sizes
dataloader.train.mapper.augmentation[1].max_size = 2400
dataloader.test.mapper.augmentation[0].short_edge_length = 1280
dataloader.test.mapper.augmentation[0].max_size = 2048

optimizer.lr = 5e-5
optimizer.weight_decay = 0.01
optimizer.params.lr_factor_func = L(layer_decay)(rate=0.8, num_layers="${model.backbone.depth}")
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[52500, 90000]),
    warmup_factor=0.01,
    warmup_length=500 / 90000,
    warmup_method="linear",
)

train.model_ema.enabled = True
train.model_ema.decay = 0.9999
train.init_checkpoint = ""
train.output_dir = "./output/co_dino_vit_large_5scale_12ep"
