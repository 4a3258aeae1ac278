"""The small dataset of `tools/make_tiny_coco.py`, in the folder $TINY_COCO_ROOT; DETR's augmentation at its scale."""

from align_detr.data import register_tiny_coco

from .coco_detr import dataloader

register_tiny_coco()

dataloader.train.dataset.names = "tiny_coco_train"
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 2
dataloader.train.mapper.augmentation[1].short_edge_length = [112, 128, 144]
dataloader.train.mapper.augmentation[1].max_size = 256
dataloader.train.mapper.augmentation_with_crop[1].short_edge_length = [128, 144, 160]
dataloader.train.mapper.augmentation_with_crop[2].crop_size = [96, 128]

dataloader.test.dataset.names = "tiny_coco_val"
dataloader.test.num_workers = 2
dataloader.test.mapper.augmentation[0].short_edge_length = 128
dataloader.test.mapper.augmentation[0].max_size = 256
