"""A part of a folder in COCO's layout: some images of each split, with their annotations."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np

SPLITS = ("train2017", "val2017")


def annotation_path(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def read_source(source: Path, split: str) -> dict:
    """The annotation file of one split."""
    layout = f"expected {source}/{{train2017,val2017,annotations/instances_{{train,val}}2017.json}}"
    path = annotation_path(source, split)
    if not (source / split).is_dir():
        raise FileNotFoundError(f"no folder {source / split}; {layout}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {layout}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not COCO annotation JSON: {error}") from error
    needed = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise ValueError(f"{path} is not COCO annotation JSON: it must have {', '.join(needed)}")
    return content


def choose(content: dict, available: set[str], count: int, rng: np.random.Generator) -> list[dict] | None:
    """`count` image entries by id, if possible with crowds and an image without objects; None if there are too few."""
    images = [image for image in content["images"] if image["file_name"] in available]
    if len(images) < count:
        return None
    shuffled = [images[index] for index in rng.permutation(len(images))]
    objects = Counter(a["image_id"] for a in content["annotations"])
    crowds = {a["image_id"] for a in content["annotations"] if a.get("iscrowd")}
    reserved = [image for image in shuffled if image["id"] in crowds][: -(-count // 10)]
    reserved += [image for image in shuffled if image["id"] not in objects][:1]
    chosen = {image["id"]: image for image in [*reserved, *shuffled]}  # a dict keeps the first place of each
    return sorted(list(chosen.values())[:count], key=lambda image: image["id"])


def subset(content: dict, images: list[dict]) -> dict:
    """The content of an annotation file for `images` only; all categories are kept."""
    kept = {image["id"] for image in images}
    licenses = {image.get("license") for image in images}
    return {
        **{key: content[key] for key in ("info",) if key in content},
        "licenses": [entry for entry in content.get("licenses", []) if entry.get("id") in licenses],
        "images": images,
        "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
        "categories": content["categories"],
    }


def plan_subset(source: Path, count: int, seed: int) -> dict[str, dict]:
    """The content of annotation files for `count` images of each split of `source`."""
    if not source.is_dir():
        raise FileNotFoundError(f"no folder {source}")
    planned = {}
    for split_index, split in enumerate(SPLITS):
        content = read_source(source, split)
        available = set(os.listdir(source / split))
        images = choose(content, available, count, np.random.default_rng([seed, split_index]))
        if images is None:
            usable = sum(image["file_name"] in available for image in content["images"])
            raise ValueError(f"--images {count}: {source / split} has only {usable} annotated images")
        planned[split] = subset(content, images)
    return planned


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
