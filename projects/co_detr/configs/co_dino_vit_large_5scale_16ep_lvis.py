"""Co-DINO on EVA-02 ViT-L, on LVIS. The published training started from weights trained on Objects365.

1203 classes, 900 queries, repeat-factor sampling, a canvas of 1536 pixels. Soft-NMS sees 1000 detections; LVIS
evaluates 300.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from detrkit.config.load import get_config

from .co_dino_vit_large_5scale_12ep import model, optimizer, train
from .models.large_scale_jitter import test_resize as _test_resize
from .models.large_scale_jitter import train_jitter as _train_jitter

dataloader = get_config("common/data/lvis.py").dataloader
dataloader.train.mapper.augmentation = _train_jitter(1536)
dataloader.train.mapper.augmentation_with_crop = None
dataloader.test.mapper.augmentation = _test_resize(1536)

model.num_classes = 1203
model.num_queries = 900
model.canvas_size = 1536
model.size_divisibility = 0
model.backbone.window_size = 16
# Global attention in the blocks 2, 5, 8, 11, 14, 17, 20 and 23.
model.backbone.window_block_indexes = [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22]
model.backbone.drop_path_rate = 0.3
# The Faster R-CNN head of the Swin-L rows.
model.collaboration.heads.faster_rcnn.num_convs = 0
model.collaboration.heads.faster_rcnn.num_layers = 2
model.collaboration.heads.faster_rcnn.class_agnostic = False
model.collaboration.heads.faster_rcnn.delta_weights = [10.0, 10.0, 5.0, 5.0]

optimizer.weight_decay = 0.05

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[67500, 112500, 120000]),
    warmup_factor=0.01,
    warmup_length=500 / 120000,
    warmup_method="linear",
)

train.max_iter = 120000
train.mix.copy_paste = 0.5
train.output_dir = "./output/co_dino_vit_large_5scale_16ep_lvis"
