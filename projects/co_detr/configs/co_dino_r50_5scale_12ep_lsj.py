"""Large-scale jitter: images that fit a square of 1024 pixels, in training at 0.1 to 2 times that size.

The published training also pasted objects from other images, and padded to the whole square.
"""

from .co_dino_r50_5scale_12ep import dataloader, lr_multiplier, model, optimizer, train
from .models.large_scale_jitter import test_augmentation as _test_augmentation
from .models.large_scale_jitter import train_augmentation as _train_augmentation

dataloader.train.mapper.augmentation = _train_augmentation
dataloader.train.mapper.augmentation_with_crop = None
dataloader.test.mapper.augmentation = _test_augmentation

optimizer.lr = 2e-4

train.output_dir = "./output/co_dino_r50_5scale_12ep_lsj"
