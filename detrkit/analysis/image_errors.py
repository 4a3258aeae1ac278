"""The errors of single images: the kind of each detection, and from which score threshold an object is missed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .detection_matching import ImageBoxes, best_of_each_class, box_iou, match_detections
from .errors import BACKGROUND, CLASSIFICATION, CORRECT, DUPLICATE, KINDS, LOCALISATION, error_kinds

IGNORED = len(KINDS)  # the kind of a detection on a crowd
NEVER = -1.0  # a score that no threshold reaches


class ImageErrors(NamedTuple):
    """Detections and objects of one image. No value depends on the score threshold: lower scores change no match.

    Attributes:
        boxes: (N, 4) float, xyxy in pixels, by descending score.
        scores: (N,) float.
        classes: (N,) int.
        kinds: (N,) int, the place in `errors.KINDS`, CORRECT or IGNORED.
        iou: (N,) float, IoU with the object that the detection is about. For background: the highest IoU with any.
        about: (N,) int, this object; -1 for background and ignored detections.
        gt_boxes: (G, 4) float, xyxy in pixels. Crowds come last.
        gt_classes: (G,) int.
        is_crowd: (G,) bool.
        found: (G,) float, score of the correct detection; NEVER without one. At higher thresholds the object is not
            found.
        seen: (G,) float, highest score of the detections that are correct, or a classification or localisation error
            about this object. At higher thresholds the object is missed, as `errors.missed_objects` counts.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    kinds: np.ndarray
    iou: np.ndarray
    about: np.ndarray
    gt_boxes: np.ndarray
    gt_classes: np.ndarray
    is_crowd: np.ndarray
    found: np.ndarray
    seen: np.ndarray


def errors_of_image(image: ImageBoxes, iou_threshold: float = 0.5, min_score: float = 0.0) -> ImageErrors:
    """Match the detections of an image, as `errors` does for all images together.

    Args:
        min_score: detections that score less are left out.
    """
    image = _crowds_last(best_of_each_class(image))
    kept = image.scores >= min_score
    image = image._replace(boxes=image.boxes[kept], scores=image.scores[kept], classes=image.classes[kept])
    matched = match_detections([image], iou_threshold)
    kinds = np.where(matched.ignored, IGNORED, error_kinds(matched, iou_threshold))
    on_same = np.isin(kinds, (DUPLICATE, LOCALISATION))
    about = np.where(on_same, matched.same_target, matched.other_target)
    about = np.where(kinds == CORRECT, matched.target, about)
    about = np.where(kinds < BACKGROUND, about, -1)
    overlaps = box_iou(image.boxes, image.gt_boxes[~image.is_crowd])
    iou = np.where(about < 0, overlaps.max(1, initial=0.0), 0.0)
    rows = np.flatnonzero(about >= 0)
    iou[rows] = overlaps[rows, about[rows]]
    count = len(image.gt_classes)
    found = _highest_score(matched.scores, about, kinds == CORRECT, count)
    near = np.isin(kinds, (CORRECT, CLASSIFICATION, LOCALISATION))
    seen = _highest_score(matched.scores, about, near, count)
    own = (image.gt_boxes, image.gt_classes, image.is_crowd)
    return ImageErrors(image.boxes, matched.scores, matched.classes, kinds, iou, about, *own, found, seen)


def lrp_sum(errors: ImageErrors, score_threshold: float, iou_threshold: float = 0.5) -> float:
    """Errors of an image as one number, the numerator of the LRP error (arXiv 1807.01696).

    A missed object and a wrong detection count 1 each. A correct detection counts (1 - IoU) / (1 - iou_threshold).
    Objects that no correct detection finds are missed here, whatever else is about them. Crowds do not count.
    """
    kept = errors.scores >= score_threshold
    correct = kept & (errors.kinds == CORRECT)
    wrong = kept & (errors.kinds != CORRECT) & (errors.kinds != IGNORED)
    missed = (errors.found < score_threshold) & ~errors.is_crowd
    offset = (1 - errors.iou[correct]) / max(1 - iou_threshold, 1e-9)
    return float(offset.sum() + wrong.sum() + missed.sum())


def _crowds_last(image: ImageBoxes) -> ImageBoxes:
    order = np.argsort(image.is_crowd, kind="stable")
    return image._replace(
        gt_boxes=image.gt_boxes[order], gt_classes=image.gt_classes[order], is_crowd=image.is_crowd[order]
    )


def _highest_score(scores: np.ndarray, about: np.ndarray, counted: np.ndarray, objects: int) -> np.ndarray:
    """(G,) the highest score of the counted detections about each object, or NEVER."""
    highest = np.full(objects, NEVER)
    np.maximum.at(highest, about[counted], scores[counted])
    return highest
