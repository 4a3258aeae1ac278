"""From weights trained on Objects365, which `train.init_checkpoint` has to name, on larger images."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from .co_dino_swin_large_5scale_12ep import dataloader, model, optimizer, train

dataloader.train.mapper.augmentation[1].short_edge_length = list(range(480, 1537, 32))
dataloader.train.mapper.augmentation[1].max_size = 2048
dataloader.test.mapper.augmentation[0].short_edge_length = 1280
dataloader.test.mapper.augmentation[0].max_size = 2048

model.dn_number = 500
model.box_noise_scale = 0.4
model.size_divisibility = 32

optimizer.lr = 1e-4

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[60000, 120000]),
    warmup_factor=0.001,
    warmup_length=0.0,
    warmup_method="linear",
)

train.max_iter = 120000
train.init_checkpoint = ""
train.output_dir = "./output/co_dino_swin_large_5scale_16ep_o365"
