"""Datasets in COCO's annotation format (https://cocodataset.org/#format-data)."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = ["load_coco_json", "register_coco_instances"]


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a dataset in COCO's format. Files are read when the dataset is loaded.

    Args:
        name: e.g. "coco_2017_train".
        metadata: additional values for `MetadataCatalog.get(name)`; may be {}. `root_env` is the environment variable
            of the two paths; the error for missing files names it. `thing_classes` (names) and
            `thing_dataset_id_to_contiguous_id` are the allowed classes; by default the file declares them.
        json_file: the annotations.
        image_root: folder of the file names in the annotations.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict]:
    """Read an annotation file.

    Args:
        json_file: the annotations.
        image_root: folder of the images.
        dataset_name: set the classes in this dataset's metadata, and name it in errors.
        extra_annotation_keys: keys of the file's annotations to keep, e.g. "segmentation", "area", "id".

    Returns:
        One dict per image, sorted by image id, also for images without objects. Keys: `file_name`, `height`, `width`,
        `image_id` and `annotations`, a list of dicts with `bbox` (x, y, width, height in pixels), `bbox_mode`,
        `iscrowd` and `category_id`. Classes are numbered from 0 in the order of the file's ids. In a file without
        `annotations` (test images) the images have no objects.

    Raises:
        FileNotFoundError: the annotation file or the image folder does not exist.
        ValueError: the file has another format, or annotations of undeclared classes.
    """
    local_file = Path(PathManager.get_local_path(os.fspath(json_file)))
    if not local_file.is_file():
        raise FileNotFoundError(_missing("annotation file", json_file, json_file, image_root, dataset_name))
    if not PathManager.isdir(os.fspath(image_root)):
        raise FileNotFoundError(_missing("image folder", image_root, json_file, image_root, dataset_name))

    content = _read(local_file)
    class_numbers = _declare_classes(content["categories"], json_file, dataset_name)
    try:
        return _image_dicts(content, class_numbers, image_root, extra_annotation_keys or (), json_file)
    except (KeyError, TypeError) as err:
        raise ValueError(f"{json_file} is not in COCO's format: an entry lacks or misuses {err}") from err


def _missing(what: str, path: str, json_file: str, image_root: str, dataset_name: str | None) -> str:
    """Return one line on a missing file or folder, the expected paths, and the environment variable."""
    message = f"{what} {path} does not exist; expected {json_file} and the images in {image_root}/"
    if dataset_name:
        message = f"dataset {dataset_name!r}: {message}"
        if variable := MetadataCatalog.get(dataset_name).get("root_env"):
            value = os.environ.get(variable)
            message += f"; the environment variable {variable} sets the folder: "
            message += "it is not set" if value is None else f"it is {value!r}"
    return message


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as err:
        raise ValueError(f"annotation file {path} is not JSON: {err}") from err
    if isinstance(content, dict) and "images" in content:
        content.setdefault("annotations", [])
    required = ("images", "annotations", "categories")
    lacking = [key for key in required if not (isinstance(content, dict) and isinstance(content.get(key), list))]
    if lacking:
        raise ValueError(f"annotation file {path} is not in COCO's format: it has no list of {', '.join(lacking)}")
    return content


def _declare_classes(categories: list[dict], json_file: str, dataset_name: str | None) -> dict[int, int]:
    """Map category ids to class numbers: from the metadata, else from the file, which then sets the metadata."""
    try:
        names = {category["id"]: category["name"] for category in sorted(categories, key=lambda c: c["id"])}
    except (KeyError, TypeError) as err:
        raise ValueError(f"{json_file} is not in COCO's format: a category lacks or misuses {err}") from err
    numbers = {id_: number for number, id_ in enumerate(names)}
    if dataset_name is None:
        return numbers
    metadata = MetadataCatalog.get(dataset_name)
    if declared := metadata.get("thing_dataset_id_to_contiguous_id"):
        return declared
    metadata.set(thing_classes=list(names.values()), thing_dataset_id_to_contiguous_id=numbers)
    return numbers


def _image_dicts(
    content: dict[str, Any],
    class_numbers: dict[int, int],
    image_root: str,
    extra_keys: Sequence[str],
    json_file: str,
) -> list[dict]:
    _check_categories(content["annotations"], class_numbers, json_file)
    objects: dict[int, list[dict]] = defaultdict(list)
    for annotation in content["annotations"]:
        box = annotation["bbox"]
        if len(box) != 4 or not all(math.isfinite(value) for value in box):
            raise ValueError(f"{json_file}: annotation {annotation.get('id')} has the box {box}, not 4 finite numbers")
        objects[annotation["image_id"]].append(
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": class_numbers[annotation["category_id"]],
                "iscrowd": annotation.get("iscrowd", 0),
                **{key: annotation[key] for key in extra_keys if key in annotation},
            }
        )
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects.get(image["id"], []),
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def _check_categories(annotations: list[dict], class_numbers: dict[int, int], json_file: str) -> None:
    undeclared: dict[int, Any] = {}
    for annotation in annotations:
        if annotation["category_id"] not in class_numbers:
            undeclared.setdefault(annotation["category_id"], annotation.get("id"))
    if undeclared:
        shown = ", ".join(f"{id_} (annotation {first})" for id_, first in list(undeclared.items())[:3])
        more = f" and {len(undeclared) - 3} more" if len(undeclared) > 3 else ""
        raise ValueError(f"{json_file}: category ids outside the {len(class_numbers)} declared classes: {shown}{more}")
