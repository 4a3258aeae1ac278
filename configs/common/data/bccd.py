"""Blood cells under the microscope, in the folder $BCCD_ROOT: github.com/Shenggan/BCCD_Dataset (MIT licence), 292 + 72
photographs with `train.json` and `val.json` in COCO's format beside its `JPEGImages`; at a quarter of their size."""

import os

from align_detr.data import register_coco

from .coco_detr import dataloader

_root = os.environ.get("BCCD_ROOT", "datasets/bccd")
for _split in ("train", "val"):
    register_coco(f"bccd_{_split}", f"{_root}/{_split}.json", f"{_root}/JPEGImages", root_env="BCCD_ROOT")

dataloader.train.dataset.names = "bccd_train"
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 1
dataloader.train.mapper.augmentation[1].short_edge_length = [160, 176, 192]
dataloader.train.mapper.augmentation[1].max_size = 256
dataloader.train.mapper.augmentation_with_crop = None

dataloader.test.dataset.names = "bccd_val"
dataloader.test.num_workers = 1
dataloader.test.mapper.augmentation[0].short_edge_length = 176
dataloader.test.mapper.augmentation[0].max_size = 256
