"""The small dataset of `align-detr make-data`, in the folder $TINY_COCO_ROOT, at its original size."""

from detrkit.datasets import register_tiny_coco

from .coco_detr import dataloader

register_tiny_coco()

dataloader.train.dataset.names = "tiny_coco_train"
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 2
dataloader.train.mapper.augmentation[1].short_edge_length = [128]
dataloader.train.mapper.augmentation[1].max_size = 256
# The training is too short to gain from crops and other sizes; images of one size need no padding.
dataloader.train.mapper.augmentation_with_crop = None

dataloader.test.dataset.names = "tiny_coco_val"
dataloader.test.num_workers = 2
dataloader.test.mapper.augmentation[0].short_edge_length = 128
dataloader.test.mapper.augmentation[0].max_size = 256
