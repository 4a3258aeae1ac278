"""Datasets in COCO's format, registered as often as a config is loaded."""

import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

ROOT_VARIABLE = "TINY_COCO_ROOT"
DEFAULT_ROOT = "datasets/tiny_coco"


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
    root = Path(os.environ.get(ROOT_VARIABLE, DEFAULT_ROOT)).expanduser()
    for split in ("train", "val"):
        annotations = root / "annotations" / f"instances_{split}2017.json"
        register_coco(f"tiny_coco_{split}", annotations, root / f"{split}2017", root_env=ROOT_VARIABLE)
