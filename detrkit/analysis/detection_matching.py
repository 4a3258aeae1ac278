"""Which detections are correct: COCO's greedy matching of detections and objects at one IoU, and average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_DETECTIONS = 100  # of an image and class, as in COCO's evaluation
RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision


class ImageBoxes(NamedTuple):
    """Objects and detections of one image.

    Attributes:
        gt_boxes: (G, 4) float, xyxy in pixels.
        gt_classes: (G,) int.
        is_crowd: (G,) bool; detections on a crowd of their class count neither as correct nor as wrong.
        boxes: (N, 4) float, xyxy in pixels.
        scores: (N,) float in [0, 1].
        classes: (N,) int.
    """

    gt_boxes: np.ndarray
    gt_classes: np.ndarray
    is_crowd: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class MatchedDetections(NamedTuple):
    """Detections of all images, those of an image by descending score. Objects are numbered over all images.

    Attributes:
        scores: (N,) float.
        classes: (N,) int.
        target: (N,) int, the object that a correct detection is matched with; -1 for the others.
        ignored: (N,) bool, whether a detection is on a crowd.
        same_iou: (N,) float, the highest IoU with an object of the detection's class; 0 without one.
        same_target: (N,) int, this object, or -1.
        other_iou: (N,) float, the highest IoU with an object of another class; 0 without one.
        other_target: (N,) int, this object, or -1.
        gt_classes: (G,) int, of all objects that are not crowds.
    """

    scores: np.ndarray
    classes: np.ndarray
    target: np.ndarray
    ignored: np.ndarray
    same_iou: np.ndarray
    same_target: np.ndarray
    other_iou: np.ndarray
    other_target: np.ndarray
    gt_classes: np.ndarray

    @property
    def is_true(self) -> np.ndarray:
        """(N,) bool, whether a detection is correct."""
        return self.target >= 0

    def select(self, keep: np.ndarray) -> MatchedDetections:
        """Keep some of the detections, and all objects. Without the lowest scores, the matching stays the same."""
        return MatchedDetections(*(values[keep] for values in self[:-1]), self.gt_classes)


def intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, G) areas of the intersections of boxes (N, 4) and (G, 4), xyxy."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(-1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """(N,) areas of boxes (N, 4), xyxy."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, G) IoU of boxes (N, 4) and (G, 4), xyxy; 0 for two boxes without area."""
    common = intersections(boxes, others)
    union = areas(boxes)[:, None] + areas(others)[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def covered_by(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """(N, G) share of each box (N, 4) that lies in a crowd (G, 4), xyxy: COCO's overlap with a crowd."""
    common, area = intersections(boxes, crowds), areas(boxes)[:, None]
    return np.divide(common, area, out=np.zeros_like(common), where=area > 0)


def match_detections(images: Sequence[ImageBoxes], iou_threshold: float = 0.5) -> MatchedDetections:
    """Match detections with objects of their class, image by image, as COCO's evaluation does.

    By descending score, each detection takes the free object of its class with the highest IoU, if that is at least
    `iou_threshold`. Of each image and class, the best MOST_DETECTIONS are used.
    """
    parts, objects = [], 0
    gt_classes = [np.zeros(0, np.int64)]
    for image in images:
        part = _match_image(best_of_each_class(image), iou_threshold)
        own = image.gt_classes[~image.is_crowd]
        shifted = [values + objects * (values >= 0) for values in (part.target, part.same_target, part.other_target)]
        parts.append(part._replace(target=shifted[0], same_target=shifted[1], other_target=shifted[2]))
        gt_classes.append(own)
        objects += len(own)
    empty = np.zeros(0)
    columns = zip(*(part[:-1] for part in parts), strict=True) if parts else [[empty]] * 8
    kinds = (float, int, int, bool, float, int, float, int)
    joined = [np.concatenate(column).astype(kind) for column, kind in zip(columns, kinds, strict=True)]
    return MatchedDetections(*joined, np.concatenate(gt_classes))


def best_of_each_class(image: ImageBoxes) -> ImageBoxes:
    """The detections by descending score, without those beyond MOST_DETECTIONS of a class."""
    order = np.argsort(-image.scores, kind="stable")
    keep = np.ones(len(order), bool)
    classes = image.classes[order]
    if len(order) > MOST_DETECTIONS:
        for label in np.unique(classes):
            keep[np.flatnonzero(classes == label)[MOST_DETECTIONS:]] = False
    order = order[keep]
    return image._replace(boxes=image.boxes[order], scores=image.scores[order], classes=image.classes[order])


def _match_image(image: ImageBoxes, iou_threshold: float) -> MatchedDetections:
    crowd = image.is_crowd
    gt_boxes, gt_classes = image.gt_boxes[~crowd], image.gt_classes[~crowd]
    iou = box_iou(image.boxes, gt_boxes)
    same = image.classes[:, None] == gt_classes[None]
    target = greedy_matches(np.where(same, iou, 0.0), iou_threshold)
    on_crowd = covered_by(image.boxes, image.gt_boxes[crowd]) >= iou_threshold
    on_crowd &= image.classes[:, None] == image.gt_classes[crowd][None]
    ignored = (target < 0) & on_crowd.any(1)
    best = [_highest(np.where(kind, iou, 0.0)) for kind in (same, ~same)]
    return MatchedDetections(image.scores, image.classes, target, ignored, *best[0], *best[1], gt_classes)


def greedy_matches(iou: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Match rows in their order, each with the free column of the highest IoU of at least the threshold.

    Args:
        iou: (N, G).

    Returns:
        (N,) int, columns, and -1 where no free column is near enough.
    """
    target = np.full(len(iou), -1)
    free = np.ones(iou.shape[1], bool)
    for row in np.flatnonzero((iou >= iou_threshold).any(1)):
        candidates = np.where(free, iou[row], -1.0)
        column = candidates.argmax()
        if candidates[column] >= iou_threshold:
            target[row], free[column] = column, False
    return target


def _highest(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest value of each row (N,), and its column (N,); 0 and -1 where no value is above 0."""
    if not iou.shape[1]:
        return np.zeros(len(iou)), np.full(len(iou), -1)
    highest = iou.max(1)
    return highest, np.where(highest > 0, iou.argmax(1), -1)


def average_precision(scores: np.ndarray, is_true: np.ndarray, count: int) -> float:
    """COCO's average precision, in [0, 1]: mean of the interpolated precision at 101 recalls.

    Args:
        scores: (N,) float.
        is_true: (N,) bool.
        count: number of objects, at least 1.
    """
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(is_true[order])
    precision = true / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    position = np.searchsorted(true / count, RECALLS, side="left")
    return float(np.append(precision, 0.0)[position].mean())


def mean_average_precision(
    scores: np.ndarray, classes: np.ndarray, is_true: np.ndarray, counts: np.ndarray
) -> float | None:
    """Mean of `average_precision` over the classes with objects, in [0, 1]; None without any.

    Args:
        counts: (C,) int, number of objects of each class.
    """
    values = [
        average_precision(scores[classes == label], is_true[classes == label], counts[label])
        for label in np.flatnonzero(counts)
    ]
    return float(np.mean(values)) if values else None
