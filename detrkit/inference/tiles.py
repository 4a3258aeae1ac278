"""Detection in overlapping tiles of a large image (arXiv 2202.06934), so that small objects keep their pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .network import Predictions

DUPLICATE_IOU = 0.5  # boxes of one class in different views that overlap by more are one object
DUPLICATE_SHARE = 0.5  # so is a cut box of which another box covers more
CUT_RANK = 0.5  # factor of a cut box's score when duplicates are ranked: the box of the whole object is to be kept
BORDER = 0.01  # of a tile's side: a box that comes as near to a seam is cut


@dataclass(frozen=True)
class Tiles:
    """Square tiles of an image.

    Attributes:
        size: side in pixels.
        overlap: of neighbours, as a share of the side; at least the size of the objects that whole images miss.

    Raises:
        ValueError: one is out of range.
    """

    size: int = 640
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 16:
            raise ValueError(f"tile={self.size!r}: expected a side of 16 pixels or more, such as 640")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"overlap={self.overlap!r}: expected a share from 0 to 0.9, such as 0.2")

    def boxes(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Left, top, right and bottom of each tile, row by row; all have the same size."""
        return [
            (left, top, min(left + self.size, width), min(top + self.size, height))
            for top in self._starts(height)
            for left in self._starts(width)
        ]

    def _starts(self, length: int) -> list[int]:
        """Evenly spread, so neighbours overlap by `overlap` or more."""
        rest = max(0, length - self.size)
        steps = math.ceil(rest / (self.size * (1 - self.overlap)) - 1e-9)
        return [round(rest * step / max(1, steps)) for step in range(steps + 1)]


class View(NamedTuple):
    """Detections in a part of an image.

    Attributes:
        found: boxes in pixels of the whole image.
        is_cut: (N,) bool, whether a box ends at a seam.
    """

    found: Predictions
    is_cut: np.ndarray


def detect_tiles(
    predict: Callable[[Sequence[np.ndarray]], Sequence[Predictions]],
    pixels: np.ndarray,
    tiles: Tiles,
    batch_size: int,
) -> Predictions:
    """Detect objects in the tiles of an image and in the whole image, and merge duplicates.

    The whole image is for objects larger than the overlap. An image no larger than a tile is not divided.

    Args:
        predict: returns the detections in each of several images.
        pixels: (H, W, 3) uint8.
        batch_size: most tiles at once.
    """
    height, width = pixels.shape[:2]
    boxes = tiles.boxes(height, width)
    (whole,) = predict([pixels])
    if len(boxes) == 1:
        return whole
    views = [_view(whole, (0, 0, width, height), width, height)]
    for start in range(0, len(boxes), batch_size):
        batch = boxes[start : start + batch_size]
        found = predict([pixels[top:bottom, left:right] for left, top, right, bottom in batch])
        views += [_view(*pair, width, height) for pair in zip(found, batch, strict=True)]
    return merge_views(views)


def _view(found: Predictions, tile: tuple[int, int, int, int], width: int, height: int) -> View:
    left, top, right, bottom = tile
    boxes = found.boxes + np.array([left, top, left, top], np.float32)
    margin = BORDER * max(right - left, bottom - top)
    is_cut = (
        ((boxes[:, 0] <= left + margin) & (left > 0))
        | ((boxes[:, 1] <= top + margin) & (top > 0))
        | ((boxes[:, 2] >= right - margin) & (right < width))
        | ((boxes[:, 3] >= bottom - margin) & (bottom < height))
    )
    return View(found._replace(boxes=boxes), is_cut)


def merge_views(views: Sequence[View]) -> Predictions:
    """Keep one detection of each object that several views of an image show.

    Detections are taken in the order of their scores, those of cut boxes halved. Each removes the later ones of its
    class in other views that overlap it by an IoU above 0.5, and the cut ones that it covers by more than half. Within
    a view nothing is removed. A detection that removes one of a higher score takes that score.

    Returns:
        The detections that are left, best first.
    """
    boxes, scores, classes = (np.concatenate(values) for values in zip(*(view.found for view in views), strict=True))
    is_cut = np.concatenate([view.is_cut for view in views])
    view = np.repeat(np.arange(len(views)), [len(view.is_cut) for view in views])
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    kept: list[int] = []
    for label in np.unique(classes):
        left = np.flatnonzero(classes == label)
        left = left[np.argsort(-scores[left] * np.where(is_cut[left], CUT_RANK, 1.0), kind="stable")]
        while len(left):
            best, left = left[0], left[1:]
            kept.append(int(best))
            corner = np.maximum(boxes[left, :2], boxes[best, :2])
            common = (np.minimum(boxes[left, 2:], boxes[best, 2:]) - corner).clip(min=0).prod(axis=1)
            iou = common / np.maximum(areas[left] + areas[best] - common, 1e-9)
            is_covered = is_cut[left] & (common > DUPLICATE_SHARE * areas[left])
            is_same = (view[left] != view[best]) & ((iou > DUPLICATE_IOU) | is_covered)
            scores[best] = scores[left[is_same]].max(initial=scores[best])
            left = left[~is_same]
    order = np.array(kept, np.int64)
    order = order[np.argsort(-scores[order], kind="stable")]
    return Predictions(boxes[order], scores[order], classes[order])
