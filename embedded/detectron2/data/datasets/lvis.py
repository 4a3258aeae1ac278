"""LVIS (arXiv 1908.03195): COCO's format, with lists of checked and of incompletely annotated classes per image."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = ["load_lvis_json", "register_lvis_instances"]

IMAGE_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def register_lvis_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a dataset in LVIS's format. Files are read when the dataset is loaded.

    Args:
        name: such as "lvis_v1_train".
        metadata: additional values for `MetadataCatalog.get(name)`; may be {}. Without `thing_classes`, the file
            declares the classes.
        json_file: the annotations.
        image_root: folder of the images; a file's place in it is the end of its `coco_url`, else its `file_name`.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict]:
    """Read an annotation file of LVIS.

    Args:
        json_file: the annotations.
        image_root: folder of the images.
        dataset_name: set `thing_classes`, `thing_dataset_id_to_contiguous_id` and `class_image_count` in this
            dataset's metadata. The last is a list of `{"id", "image_count"}`, one for each class.
        extra_annotation_keys: keys of the file's annotations to keep.

    Returns:
        One dict per image, sorted by image id: `file_name`, `height`, `width`, `image_id`, `neg_category_ids` and
        `not_exhaustive_category_ids` (category ids of the file), and `annotations`, a list of dicts with `bbox` (x, y,
        width, height in pixels), `bbox_mode` and `category_id`. Classes are numbered from 0 in the order of their ids.

    Raises:
        FileNotFoundError: the annotation file does not exist.
        ValueError: the file has another format.
    """
    local = Path(PathManager.get_local_path(os.fspath(json_file)))
    if not local.is_file():
        raise FileNotFoundError(_missing(json_file, image_root, dataset_name))
    try:
        content = json.loads(local.read_bytes())
        numbers = _declare_classes(content, dataset_name)
        return _image_dicts(content, numbers, image_root, extra_annotation_keys or [])
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(
            f"{json_file} is not in LVIS's format ({type(err).__name__}: {err}): expected images, annotations and "
            "categories as on https://www.lvisdataset.org/dataset"
        ) from err


def _missing(json_file: str, image_root: str, dataset_name: str | None) -> str:
    message = f"annotation file {json_file} does not exist; expected it, and the images in {image_root}/"
    variable = MetadataCatalog.get(dataset_name).get("root_env") if dataset_name else None
    advice = f"; set the environment variable {variable} to the folder of all datasets" if variable else ""
    return (f"dataset {dataset_name!r}: " if dataset_name else "") + message + advice


def _declare_classes(content: dict, dataset_name: str | None) -> dict[int, int]:
    """Return class numbers by category id; set the metadata."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    numbers = {category["id"]: number for number, category in enumerate(categories)}
    if dataset_name is None:
        return numbers
    metadata = MetadataCatalog.get(dataset_name)
    if declared := metadata.get("thing_dataset_id_to_contiguous_id"):
        return declared
    images = defaultdict(set)
    if any("image_count" not in category for category in categories):
        for annotation in content.get("annotations", ()):
            images[annotation["category_id"]].add(annotation["image_id"])
    metadata.set(
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=numbers,
        class_image_count=[
            {"id": category["id"], "image_count": category.get("image_count", len(images[category["id"]]))}
            for category in categories
        ],
    )
    return numbers


def _image_dicts(content: dict, numbers: dict[int, int], image_root: str, extra_keys: list[str]) -> list[dict]:
    objects: dict[int, list[dict]] = defaultdict(list)
    for annotation in content.get("annotations", ()):
        objects[annotation["image_id"]].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": numbers[annotation["category_id"]],
                **{key: annotation[key] for key in extra_keys if key in annotation},
            }
        )
    return [
        {
            "file_name": os.path.join(image_root, _place(image)),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects.get(image["id"], []),
            **{key: image.get(key, []) for key in IMAGE_LISTS},
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def _place(image: dict) -> str:
    """Place of an image: LVIS v1 has COCO's splits of its own, so the URL names the folder."""
    if "coco_url" in image:
        return "/".join(image["coco_url"].split("/")[-2:])
    return image["file_name"]
