"""What a detector gets wrong: a confusion matrix, and errors by kind with the AP that each costs.

The kinds are those of TIDE (arXiv 2008.08115). An incorrect detection has the first kind that fits:

    duplicate       IoU >= 0.5 with an object of its class, which a better detection has found
    classification  IoU >= 0.5 with an object of another class
    localisation    IoU >= 0.1 with an object of its class
    both            IoU >= 0.1 with an object of another class
    background      none of these

An object is missed if it is not found, and no classification or localisation error is about it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .detection_matching import (
    ImageBoxes,
    MatchedDetections,
    box_iou,
    covered_by,
    mean_average_precision,
)

KINDS = ("classification", "localisation", "both", "duplicate", "background")
MISSED = "missed"
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(len(KINDS))
CORRECT = -1  # also of detections on crowds
NEAR = 0.1  # IoU below which a detection has nothing to do with an object


def error_kinds(matched: MatchedDetections, iou_threshold: float = 0.5) -> np.ndarray:
    """(N,) int, the place in KINDS of each detection's error; CORRECT for correct and ignored ones."""
    conditions = [
        matched.is_true | matched.ignored,
        matched.same_iou >= iou_threshold,
        matched.other_iou >= iou_threshold,
        matched.same_iou >= NEAR,
        matched.other_iou >= NEAR,
    ]
    return np.select(conditions, [CORRECT, DUPLICATE, CLASSIFICATION, LOCALISATION, BOTH], BACKGROUND)


def missed_objects(matched: MatchedDetections, kinds: np.ndarray) -> np.ndarray:
    """(G,) bool, whether an object is missed."""
    missed = np.ones(len(matched.gt_classes), bool)
    missed[matched.target[matched.is_true]] = False
    missed[matched.other_target[kinds == CLASSIFICATION]] = False
    missed[matched.same_target[kinds == LOCALISATION]] = False
    return missed


def error_costs(matched: MatchedDetections, num_classes: int, iou_threshold: float = 0.5) -> dict[str, float | None]:
    """AP at `iou_threshold` that each kind of error costs: the AP if it were mended, minus the AP.

    A classification or localisation error is mended by the right class or box, unless a detection of a higher score
    finds the same object: then it is removed. Missed objects are removed, and so are errors of the other kinds. A class
    whose objects are all missed leaves the mean.

    Returns:
        By kind in [0, 1]; None without objects. Mended together they do not add up.
    """
    used = matched.select(~matched.ignored)
    kinds = error_kinds(used, iou_threshold)
    counts = np.bincount(used.gt_classes, minlength=num_classes)
    before = mean_average_precision(used.scores, used.classes, used.is_true, counts)
    if before is None:
        return dict.fromkeys((*KINDS, MISSED))
    costs: dict[str, float | None] = {}
    for kind, name in enumerate(KINDS):
        if kind in (CLASSIFICATION, LOCALISATION):
            about = used.other_target if kind == CLASSIFICATION else used.same_target
            after = _mended(used, np.where(kinds == kind, about, used.target), kinds == kind)
        else:
            after = used.select(kinds != kind)
        costs[name] = mean_average_precision(after.scores, after.classes, after.is_true, counts) - before
    kept = np.bincount(used.gt_classes[~missed_objects(used, kinds)], minlength=num_classes)
    without = mean_average_precision(used.scores, used.classes, used.is_true, kept)
    costs[MISSED] = (1.0 if without is None else without) - before
    return costs


def _mended(matched: MatchedDetections, target: np.ndarray, mended: np.ndarray) -> MatchedDetections:
    """Detections with new targets; of several with one target, that of the highest score."""
    keep = np.ones(len(target), bool)
    taken = set()
    for index in np.argsort(-matched.scores, kind="stable"):
        if target[index] >= 0:
            keep[index] = target[index] not in taken
            taken.add(target[index])
    classes = matched.classes.copy()
    classes[mended] = matched.gt_classes[target[mended]]
    return matched._replace(target=target, classes=classes).select(keep)


def confusion_matrix(
    images: Sequence[ImageBoxes], num_classes: int, score_threshold: float, iou_threshold: float = 0.5
) -> np.ndarray:
    """Count which class objects are detected as.

    In each image, detections and objects are paired by descending IoU: those of one class first, then the others. A
    detection that is left is one of background, an object that is left is detected as background. Detections that are
    left on a crowd of their class are not counted.

    Args:
        score_threshold: detections that score less are left out.

    Returns:
        (C + 1, C + 1) int: rows are true classes, columns are detected classes, the last of both is background.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    for image in images:
        kept = np.flatnonzero(image.scores >= score_threshold)
        kept = kept[np.argsort(-image.scores[kept], kind="stable")]
        boxes, classes = image.boxes[kept], image.classes[kept]
        gt_boxes, gt_classes = image.gt_boxes[~image.is_crowd], image.gt_classes[~image.is_crowd]
        rows, columns = _pairs(box_iou(boxes, gt_boxes), classes[:, None] == gt_classes[None], iou_threshold)
        np.add.at(matrix, (gt_classes[columns], classes[rows]), 1)
        crowds, crowd_classes = image.gt_boxes[image.is_crowd], image.gt_classes[image.is_crowd]
        on_crowd = (covered_by(boxes, crowds) >= iou_threshold) & (classes[:, None] == crowd_classes[None])
        alone = ~on_crowd.any(1)
        alone[rows] = False
        np.add.at(matrix, (num_classes, classes[alone]), 1)
        lost = np.ones(len(gt_classes), bool)
        lost[columns] = False
        np.add.at(matrix, (gt_classes[lost], num_classes), 1)
    return matrix


def _pairs(iou: np.ndarray, same: np.ndarray, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pairs by descending IoU, those of `same` first; each row and column once."""
    rows, columns = np.nonzero(iou >= iou_threshold)
    order = np.lexsort((-iou[rows, columns], ~same[rows, columns]))
    free_rows, free_columns = np.ones(iou.shape[0], bool), np.ones(iou.shape[1], bool)
    chosen = []
    for row, column in zip(rows[order], columns[order], strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            chosen.append((row, column))
    pairs = np.array(chosen, int).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
