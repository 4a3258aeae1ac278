"""Soft non-maximum suppression (arXiv 1704.04503)."""

from __future__ import annotations

from typing import Any

import numpy as np

MIN_SCORE = 1e-3


def checked_threshold(value: Any, name: str) -> float:
    """Return the IoU threshold of an option; None counts as 0, which turns the suppression off.

    Raises:
        ValueError: it is not a number from 0 to 1.
    """
    value = 0.0 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected an IoU from 0 to 1, such as 0.8; 0 turns soft-NMS off")
    return float(value)


def soft_nms(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, min_score: float = MIN_SCORE
) -> tuple[np.ndarray, np.ndarray]:
    """Lower the scores of detections that overlap a better one of their class: linear soft-NMS.

    Repeatedly take the best detection that is left; multiply by 1 - IoU the scores of the others of its class whose IoU
    with it is above `threshold`.

    Args:
        boxes: (N, 4), xyxy.
        scores, classes: (N,).
        min_score: drop detections whose lowered score is below this.

    Returns:
        The indices (K,) of the detections that are left, best first, and their scores (K,).
    """
    scores = scores.astype(np.float64)
    left = np.arange(len(scores))
    areas = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).clip(min=0).prod(axis=1)
    order, kept = [], []
    while len(left):
        best = left[scores[left].argmax()]
        if scores[best] < min_score:
            break
        order.append(best)
        kept.append(scores[best])
        left = left[left != best]
        same = left[classes[left] == classes[best]]
        corner = np.maximum(boxes[same, :2], boxes[best, :2])
        common = (np.minimum(boxes[same, 2:], boxes[best, 2:]) - corner).clip(min=0).prod(axis=1)
        iou = common / np.maximum(areas[same] + areas[best] - common, 1e-9)
        scores[same] *= np.where(iou > threshold, 1 - iou, 1.0)
    return np.array(order, np.int64), np.array(kept, np.float32)
