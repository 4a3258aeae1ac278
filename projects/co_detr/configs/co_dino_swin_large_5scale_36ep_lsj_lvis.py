"""Co-DINO Swin-L on LVIS: 1203 classes, 300 detections, repeat-factor sampling, a canvas of 1280 pixels."""

from detrkit.config.load import get_config

from .co_dino_swin_large_5scale_36ep_lsj import lr_multiplier, model, optimizer, train
from .models.large_scale_jitter import test_resize as _test_resize
from .models.large_scale_jitter import train_jitter as _train_jitter

dataloader = get_config("common/data/lvis.py").dataloader
dataloader.train.mapper.augmentation = _train_jitter(1280)
dataloader.train.mapper.augmentation_with_crop = None
dataloader.test.mapper.augmentation = _test_resize(1280)

model.num_classes = 1203
model.backbone.drop_path_rate = 0.3

train.output_dir = "./output/co_dino_swin_large_5scale_36ep_lsj_lvis"
