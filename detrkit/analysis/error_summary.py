"""All figures on a detector's errors as plain data, for JSON files, pages and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .detection_matching import ImageBoxes, MatchedDetections, match_detections, mean_average_precision
from .errors import KINDS, MISSED, confusion_matrix, error_costs, error_kinds, missed_objects
from .thresholds import ThresholdCurve, best_threshold, threshold_curve

GRID = np.linspace(0, 1, 101)  # thresholds of the curves in files


def summarize_errors(
    images: Sequence[ImageBoxes], class_names: Sequence[str], iou_threshold: float = 0.5
) -> dict[str, Any]:
    """Choose the score threshold, and count the errors of detections that score as much or more.

    Args:
        class_names: of the C classes.
        iou_threshold: IoU from which a detection finds an object.

    Returns:
        Plain data: "images", "objects", "detections" (counts); "iou_threshold"; "AP" at this IoU in [0, 1];
        "score_threshold" of the highest F1, None if no detection is correct; "precision", "recall" and "f1" there;
        "curve" (lists over 101 thresholds); "classes" (for each class the same figures with its own best threshold);
        "confusion" ("names" and "matrix", see `confusion_matrix`) and "errors" (by kind the "count" at the threshold,
        and the "AP_cost" over all detections).
    """
    count = len(class_names)
    matched = match_detections(images, iou_threshold)
    used = matched.select(~matched.ignored)
    counts = np.bincount(used.gt_classes, minlength=count)
    curve = threshold_curve(used.scores, used.is_true, len(used.gt_classes))
    threshold = best_threshold(curve)
    kept = threshold if threshold is not None else 0.0
    shown = used.select(used.scores >= kept)
    kinds = error_kinds(shown, iou_threshold)
    numbers = {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS)}
    numbers[MISSED] = int(missed_objects(shown, kinds).sum())
    costs = error_costs(used, count, iou_threshold)
    return {
        "images": len(images),
        "objects": len(used.gt_classes),
        "detections": len(matched.scores),
        "iou_threshold": iou_threshold,
        "AP": mean_average_precision(used.scores, used.classes, used.is_true, counts),
        "score_threshold": threshold,
        **_at(curve, threshold),
        "curve": _sampled(curve),
        "classes": [_of_class(used, label, name) for label, name in enumerate(class_names)],
        "confusion": {
            "names": [*class_names, "background"],
            "matrix": confusion_matrix(images, count, kept, iou_threshold).tolist(),
        },
        "errors": {name: {"count": numbers[name], "AP_cost": costs[name]} for name in numbers},
    }


def _of_class(matched: MatchedDetections, label: int, name: str) -> dict[str, Any]:
    own = matched.classes == label
    objects = int((matched.gt_classes == label).sum())
    scores, is_true = matched.scores[own], matched.is_true[own]
    curve = threshold_curve(scores, is_true, objects)
    threshold = best_threshold(curve)
    precision = mean_average_precision(scores, np.zeros(len(scores), int), is_true, np.array([objects]))
    return {
        "name": name,
        "objects": objects,
        "AP": precision,
        "score_threshold": threshold,
        **_at(curve, threshold),
        "curve": _sampled(curve),
    }


def _at(curve: ThresholdCurve, threshold: float | None) -> dict[str, float | None]:
    values = (None, None, None) if threshold is None else curve.at(threshold)
    return dict(zip(("precision", "recall", "f1"), values, strict=True))


def _sampled(curve: ThresholdCurve) -> dict[str, list[float | None]]:
    points = [curve.at(threshold) for threshold in GRID]
    rounded = [[None if value is None else round(value, 4) for value in column] for column in zip(*points, strict=True)]
    thresholds = [round(float(threshold), 2) for threshold in GRID]
    return dict(zip(("thresholds", "precision", "recall", "f1"), [thresholds, *rounded], strict=True))
