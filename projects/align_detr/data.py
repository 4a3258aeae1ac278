"""The dataset that `tools/make_tiny_coco.py` writes, under its two names."""

import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

ROOT_VARIABLE = "TINY_COCO_ROOT"
DEFAULT_ROOT = "datasets/tiny_coco"


def register_tiny_coco() -> None:
    """Registers `tiny_coco_train` and `tiny_coco_val`, in COCO's layout under the folder $TINY_COCO_ROOT names.

    The variable is read on each call: a second call with another folder replaces the registration.
    """
    root = Path(os.environ.get(ROOT_VARIABLE, DEFAULT_ROOT)).expanduser()
    for split in ("train", "val"):
        name = f"tiny_coco_{split}"
        json_file = str(root / "annotations" / f"instances_{split}2017.json")
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("json_file") == json_file:
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {"root_env": ROOT_VARIABLE}, json_file, str(root / f"{split}2017"))
