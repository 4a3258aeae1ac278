"""Large-scale jitter on a square canvas of 1280 pixels, and objects pasted as boxes from other images."""

from .co_dino_swin_large_5scale_12ep import dataloader, lr_multiplier, model, optimizer, train
from .models.large_scale_jitter import test_resize as _test_resize
from .models.large_scale_jitter import train_jitter as _train_jitter

dataloader.train.mapper.augmentation = _train_jitter(1280)
dataloader.train.mapper.augmentation_with_crop = None
dataloader.test.mapper.augmentation = _test_resize(1280)

model.canvas_size = 1280

optimizer.lr = 2e-4

train.mix.copy_paste = 0.5
train.output_dir = "./output/co_dino_swin_large_5scale_12ep_lsj"
