"""COCO 2017 at about a third of the usual size, for training on a CPU; augmentation as in `coco_detr`."""

from .coco_detr import dataloader

dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 2
dataloader.train.mapper.augmentation[1].short_edge_length = [192, 208, 224, 240, 256]
dataloader.train.mapper.augmentation[1].max_size = 384
dataloader.train.mapper.augmentation_with_crop[1].short_edge_length = [224, 256, 288]
dataloader.train.mapper.augmentation_with_crop[2].crop_size = [128, 224]

dataloader.test.num_workers = 2
dataloader.test.mapper.augmentation[0].short_edge_length = 224
dataloader.test.mapper.augmentation[0].max_size = 384
