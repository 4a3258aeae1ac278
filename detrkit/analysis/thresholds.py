"""Precision, recall and F1 over the score threshold, and the threshold of the highest F1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ThresholdCurve(NamedTuple):
    """What keeping the detections that score `thresholds` or more gives.

    Attributes:
        thresholds: (T,) float, the distinct scores, descending.
        precision: (T,) float, share of correct detections.
        recall: (T,) float, share of objects that are found.
        f1: (T,) float, harmonic mean of both.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def at(self, threshold: float) -> tuple[float | None, float, float]:
        """Precision (None if nothing is kept), recall and F1 at any threshold."""
        kept = int((self.thresholds >= threshold).sum())
        if not kept:
            return None, 0.0, 0.0
        return tuple(float(values[kept - 1]) for values in (self.precision, self.recall, self.f1))


def threshold_curve(scores: np.ndarray, is_true: np.ndarray, count: int) -> ThresholdCurve:
    """Precision, recall and F1 at each distinct score.

    Args:
        scores: (N,) float.
        is_true: (N,) bool, whether a detection is correct.
        count: number of objects; without any, recall and F1 are 0.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]  # of the detections of one score
    true, kept = np.cumsum(is_true[order])[is_last], np.arange(1, len(ordered) + 1)[is_last]
    recall = true / count if count else np.zeros(len(true))
    return ThresholdCurve(ordered[is_last], true / kept, recall, 2 * true / (kept + count))


def best_threshold(curve: ThresholdCurve) -> float | None:
    """The threshold of the highest F1; of several, the highest. None if no detection is correct."""
    if not len(curve.f1) or not curve.f1.max() > 0:
        return None
    return float(curve.thresholds[curve.f1.argmax()])
