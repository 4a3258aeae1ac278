"""Training images made of several images: mosaic, and objects pasted from other images.

A detectron2 augmentation has one image and cannot add objects. These work one step earlier: they make a new image with
new annotations, which the mapper of the config then reads, resizes and augments as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image

from .images import read_image
from .mapper import offered_name

GREY = 114
TRIES = 10  # to read another image that has objects


class MixingMapper:
    """Call a mapper with images that are sometimes made of several images of the dataset.

    Random numbers come from numpy's global generator.

    Args:
        mapper: takes dataset dicts.
        dataset: dataset dicts, of which other images are drawn.
        mosaic: probability of four images in one.
        copy_paste: probability of objects from another image.
        most_pasted: largest number of pasted objects.
    """

    def __init__(
        self,
        mapper: Callable[[dict[str, Any]], Any],
        dataset: Sequence[dict[str, Any]],
        mosaic: float = 0.0,
        copy_paste: float = 0.0,
        most_pasted: int = 5,
    ):
        if not (0 <= mosaic <= 1 and 0 <= copy_paste <= 1 and most_pasted >= 1):
            raise ValueError(
                f"train.mix: mosaic={mosaic} and copy_paste={copy_paste} are probabilities from 0 to 1, and "
                f"most_pasted={most_pasted} is at least 1"
            )
        self.mapper, self._dataset = mapper, dataset
        self._mosaic, self._copy_paste, self._most_pasted = mosaic, copy_paste, most_pasted

    def __call__(self, dataset_dict: dict[str, Any]) -> Any:
        """Map the image, or the mixed image made from it. `file_name` is that of the first image.

        Raises:
            OSError: an image is missing or broken.
        """
        mixes, pastes = np.random.uniform(size=2) < (self._mosaic, self._copy_paste)
        if not (mixes or pastes) or "annotations" not in dataset_dict:
            return self.mapper(dataset_dict)
        image = _read(dataset_dict)
        if mixes:
            image = mosaic([image, *(_read(self._other()) for _ in range(3))])
        if pastes:
            image = paste_objects(image, _read(self._with_objects()), self._most_pasted)
        pixels, annotations = image
        height, width = pixels.shape[:2]
        mixed = {**dataset_dict, "annotations": annotations, "height": height, "width": width}
        example = self.mapper({**mixed, "file_name": offered_name(pixels)})
        return example if example is None else {**example, "file_name": dataset_dict["file_name"]}

    def _other(self) -> dict[str, Any]:
        return self._dataset[np.random.randint(len(self._dataset))]

    def _with_objects(self) -> dict[str, Any]:
        for _ in range(TRIES):
            other = self._other()
            if any(not a.get("iscrowd") for a in other.get("annotations", ())):
                break
        return other


MixedImage = tuple[np.ndarray, list[dict[str, Any]]]  # (H, W, 3) uint8 RGB, and annotations with boxes in xyxy


def _read(dataset_dict: Mapping[str, Any]) -> MixedImage:
    pixels = read_image(dataset_dict["file_name"])
    annotations = [
        _annotation(a, BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS))
        for a in dataset_dict.get("annotations", ())
    ]
    return pixels, annotations


def _annotation(source: Mapping[str, Any], box: Sequence[float]) -> dict[str, Any]:
    kept = {key: source[key] for key in ("category_id", "iscrowd") if key in source}
    return {**kept, "bbox": [float(side) for side in box], "bbox_mode": BoxMode.XYXY_ABS}


def mosaic(images: Sequence[MixedImage]) -> MixedImage:
    """Four images in the quarters of one, whose common corner is at a random place.

    The result is as large as the first image. Each image is scaled to cover its quarter's longer side and cut off at
    the quarter; the rest is grey. Boxes of which less than a fifth is left are removed.

    Args:
        images: four.
    """
    height, width = images[0][0].shape[:2]
    row, column = (round(side * np.random.uniform(0.3, 0.7)) for side in (height, width))
    canvas = np.full((height, width, 3), GREY, np.uint8)
    annotations = []
    quarters = [(0, 0, row, column), (0, column, row, width), (row, 0, height, column), (row, column, height, width)]
    for (pixels, own), (top, left, bottom, right) in zip(images, quarters, strict=True):
        room = bottom - top, right - left
        if min(room) < 1:
            continue
        scale = max(room[0] / pixels.shape[0], room[1] / pixels.shape[1])
        size = max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1)
        scaled = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        y, x = (np.random.randint(max(side - space, 0) + 1) for side, space in zip(scaled.shape, room, strict=False))
        part = scaled[y : y + room[0], x : x + room[1]]
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        limits = left, top, left + part.shape[1], top + part.shape[0]
        ratio = np.array([size[0] / pixels.shape[1], size[1] / pixels.shape[0]] * 2)
        for annotation in own:
            box = np.array(annotation["bbox"]) * ratio + np.array([left - x, top - y] * 2)
            annotations += _cut(annotation, box, limits)
    return canvas, annotations


def _cut(annotation: Mapping[str, Any], box: np.ndarray, limits: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """The annotation with the part of its box within the limits; [] if that is less than a fifth."""
    inside = np.concatenate([np.maximum(box[:2], limits[:2]), np.minimum(box[2:], limits[2:])])
    sides, before = (inside[2:] - inside[:2]).clip(0), (box[2:] - box[:2]).clip(0)
    is_seen = sides.prod() > 0 and sides.prod() >= 0.2 * before.prod()
    return [_annotation(annotation, inside)] if is_seen else []


def paste_objects(image: MixedImage, other: MixedImage, most: int) -> MixedImage:
    """Copy the boxes of some objects of another image to random places, on top of what is there.

    Other objects of that image come along if at least half of them lies in such a box. Objects of which more than half
    is then covered are removed.

    Args:
        most: largest number of objects.
    """
    pixels, annotations = image[0].copy(), list(image[1])
    height, width = pixels.shape[:2]
    candidates = [a for a in other[1] if not a.get("iscrowd")]
    count = min(len(candidates), np.random.randint(1, most + 1))
    for index in np.random.permutation(len(candidates))[:count]:
        left, top, right, bottom = np.array(candidates[index]["bbox"]).round().astype(int)
        patch = other[0][max(top, 0) : bottom, max(left, 0) : right]
        if min(patch.shape[:2]) < 2 or patch.shape[0] > height or patch.shape[1] > width:
            continue
        y = np.random.randint(height - patch.shape[0] + 1)
        x = np.random.randint(width - patch.shape[1] + 1)
        pixels[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        box = [x, y, x + patch.shape[1], y + patch.shape[0]]
        annotations = [a for a in annotations if a.get("iscrowd") or _share_covered(a["bbox"], box) <= 0.5]
        shift = np.array([x - max(left, 0), y - max(top, 0)] * 2)
        for number, candidate in enumerate(candidates):
            moved = np.array(candidate["bbox"]) + shift
            if number == index or _share_covered(moved, box) >= 0.5:
                annotations += _cut(candidate, moved, box)
    return pixels, annotations


def _share_covered(box: Sequence[float], cover: Sequence[float]) -> float:
    width = max(min(box[2], cover[2]) - max(box[0], cover[0]), 0)
    height = max(min(box[3], cover[3]) - max(box[1], cover[1]), 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return width * height / area if area > 0 else 0.0
