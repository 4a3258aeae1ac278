"""The small dataset of `tools/make_tiny_coco.py`, in the folder $TINY_COCO_ROOT; flips and resizes at its scale."""

from align_detr.data import register_tiny_coco

from .coco_detr import dataloader

register_tiny_coco()

dataloader.train.dataset.names = "tiny_coco_train"
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 2
dataloader.train.mapper.augmentation[1].short_edge_length = [112, 128, 144]
dataloader.train.mapper.augmentation[1].max_size = 256
# A dozen epochs are too few to profit from crops.
dataloader.train.mapper.augmentation_with_crop = None

dataloader.test.dataset.names = "tiny_coco_val"
dataloader.test.num_workers = 2
dataloader.test.mapper.augmentation[0].short_edge_length = 128
dataloader.test.mapper.augmentation[0].max_size = 256
