"""NEU-DET: surface defects of hot-rolled steel, 200 × 200 pixels, in the folder $NEU_DET_ROOT."""

from detrkit.datasets import register_neu_det

from .coco_small import dataloader

register_neu_det()

dataloader.train.dataset.names = "neu_det_train"
dataloader.train.num_workers = 1
dataloader.train.mapper.augmentation[1].short_edge_length = [176, 192, 208]
dataloader.train.mapper.augmentation[1].max_size = 224
dataloader.train.mapper.augmentation_with_crop[2].crop_size = [144, 200]

dataloader.test.dataset.names = "neu_det_val"
dataloader.test.num_workers = 1
dataloader.test.mapper.augmentation[0].short_edge_length = 192
