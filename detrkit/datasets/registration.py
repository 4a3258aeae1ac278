"""Datasets in COCO's format, registered as often as a config is loaded."""

import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

TINY_COCO_ROOT, TINY_COCO = "TINY_COCO_ROOT", "datasets/tiny_coco"
BCCD_ROOT, BCCD = "BCCD_ROOT", "datasets/bccd"


def register_coco(name: str, json_file: str | Path, image_root: str | Path, **metadata: Any) -> None:
    """detectron2's `register_coco_instances` for use in a config, which some tools load more than once.

    Args:
        name: what `dataloader.….dataset.names` calls it. Registered before, it is replaced if it had other annotations.
        json_file: annotations in COCO's format.
        image_root: the folder that their file names are relative to.
        metadata: what else to keep in `MetadataCatalog.get(name)`.
    """
    json_file, image_root = str(json_file), str(image_root)
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("json_file") == json_file:
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, metadata, json_file, image_root)


def register_tiny_coco() -> None:
    """Registers the dataset that `align-detr make-data` writes, in the folder $TINY_COCO_ROOT names, as
    `tiny_coco_train` and `tiny_coco_val`. The variable is read on each call."""
    root = Path(os.environ.get(TINY_COCO_ROOT, TINY_COCO)).expanduser()
    for split in ("train", "val"):
        annotations = root / "annotations" / f"instances_{split}2017.json"
        register_coco(f"tiny_coco_{split}", annotations, root / f"{split}2017", root_env=TINY_COCO_ROOT)


def register_bccd() -> None:
    """Registers photographs of blood cells, github.com/Shenggan/BCCD_Dataset (MIT licence), in the folder $BCCD_ROOT
    names, as `bccd_train` and `bccd_val`: `train.json` and `val.json` in COCO's format beside its `JPEGImages`. The
    variable is read on each call."""
    root = Path(os.environ.get(BCCD_ROOT, BCCD)).expanduser()
    for split in ("train", "val"):
        register_coco(f"bccd_{split}", root / f"{split}.json", root / "JPEGImages", root_env=BCCD_ROOT)


def register_own_datasets() -> None:
    """Registers what this project's configs train on. A config that is a program does so itself; a saved one cannot."""
    register_tiny_coco()
    register_bccd()
