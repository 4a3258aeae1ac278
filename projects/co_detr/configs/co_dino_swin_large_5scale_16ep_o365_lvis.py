"""Co-DINO Swin-L on LVIS from weights trained on Objects365, which `train.init_checkpoint` has to name.

1203 classes, repeat-factor sampling, a canvas of 1536 pixels. Soft-NMS sees 1000 detections; LVIS evaluates 300.
"""

from detrkit.config.load import get_config

from .co_dino_swin_large_5scale_16ep_o365 import lr_multiplier, model, optimizer, train
from .models.large_scale_jitter import test_resize as _test_resize
from .models.large_scale_jitter import train_jitter as _train_jitter

dataloader = get_config("common/data/lvis.py").dataloader
dataloader.train.mapper.augmentation = _train_jitter(1536)
dataloader.train.mapper.augmentation_with_crop = None
dataloader.test.mapper.augmentation = _test_resize(1536)

model.num_classes = 1203
model.canvas_size = 1536
model.size_divisibility = 0
model.select_box_nums_for_evaluation = 1000

train.mix.copy_paste = 0.5
train.output_dir = "./output/co_dino_swin_large_5scale_16ep_o365_lvis"
