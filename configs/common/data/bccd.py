"""BCCD: microscope images of blood cells, in the folder $BCCD_ROOT, at a quarter of their size."""

from detrkit.datasets import register_bccd

from .coco_detr import dataloader

register_bccd()

dataloader.train.dataset.names = "bccd_train"
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.train.mapper.augmentation[1].short_edge_length = [160, 176, 192]
dataloader.train.mapper.augmentation[1].max_size = 256
dataloader.train.mapper.augmentation_with_crop = None

dataloader.test.dataset.names = "bccd_val"
dataloader.test.num_workers = 1
dataloader.test.mapper.augmentation[0].short_edge_length = 176
dataloader.test.mapper.augmentation[0].max_size = 256
