"""Errors of single images: the counts of all images together, at every threshold."""

import numpy as np
import pytest

from detrkit.analysis.detection_matching import match_detections
from detrkit.analysis.errors import CORRECT, KINDS, error_kinds, missed_objects
from detrkit.analysis.image_errors import IGNORED, errors_of_image, lrp_sum
from tests.detrkit.analysis.test_errors import image_of, iou, matched_slowly, random_images


@pytest.mark.parametrize("seed", range(12))
def test_counts_are_those_of_all_images(seed):
    """One matching serves all thresholds: kinds and missed objects are those of the detections kept alone."""
    images = random_images(seed)
    found = [errors_of_image(image) for image in images]
    for threshold in (0.0, 0.3, 0.7):
        matched = match_detections(images)
        shown = matched.select(~matched.ignored & (matched.scores >= threshold))
        kinds = error_kinds(shown)
        ours = np.concatenate([e.kinds[(e.scores >= threshold) & (e.kinds != IGNORED)] for e in found])
        assert [(ours == kind).sum() for kind in range(CORRECT, len(KINDS))] == [
            (kinds == kind).sum() for kind in range(CORRECT, len(KINDS))
        ]
        missed = sum(int(((e.seen < threshold) & ~e.is_crowd).sum()) for e in found)
        assert missed == missed_objects(shown, kinds).sum()


@pytest.mark.parametrize("seed", range(12))
def test_lrp_sum_is_its_definition(seed):
    for image in random_images(seed):
        for threshold in (0.0, 0.5):
            entries, objects = matched_slowly([image])
            entries = [e for e in entries if e["score"] >= threshold and not e["ignored"]]
            correct = [e for e in entries if e["target"] is not None]
            boxes = {float(score): box for score, box in zip(image.scores, image.boxes, strict=True)}
            if len(boxes) < len(image.scores):
                continue  # equal scores do not name a box
            offset = sum((1 - iou(boxes[e["score"]], image.gt_boxes[e["target"][1]])) / 0.5 for e in correct)
            expected = offset + len(entries) - len(correct) + len(objects) - len(correct)
            assert lrp_sum(errors_of_image(image), threshold) == pytest.approx(expected)


def test_what_a_detection_is_about():
    """By hand: a correct one, a duplicate, another class, a crowd, nothing; the IoU is with the object it is about."""
    image = image_of(
        objects=[(0, 0, 0, 10, 10), (1, 20, 0, 30, 10)],
        detections=[
            (0, 0.9, 0, 0, 10, 10),
            (0, 0.8, 0, 0, 10, 8),
            (2, 0.7, 20, 0, 30, 9),
            (2, 0.6, 52, 52, 58, 58),
            (1, 0.5, 80, 80, 90, 90),
            (1, 0.01, 20, 0, 30, 10),
        ],
        crowds=[(2, 50, 50, 60, 60)],
    )
    crowd_first = image._replace(
        gt_boxes=image.gt_boxes[[2, 0, 1]], gt_classes=image.gt_classes[[2, 0, 1]], is_crowd=image.is_crowd[[2, 0, 1]]
    )
    for given in (image, crowd_first):
        errors = errors_of_image(given, min_score=0.05)
        kinds = [CORRECT, KINDS.index("duplicate"), KINDS.index("classification"), IGNORED, KINDS.index("background")]
        assert errors.kinds.tolist() == kinds
        assert errors.about.tolist() == [0, 0, 1, -1, -1]
        assert errors.iou == pytest.approx([1, 0.8, 0.9, 0, 0])
        assert errors.is_crowd.tolist() == [False, False, True]
        assert errors.found.tolist() == [0.9, -1, -1] and errors.seen.tolist() == [0.9, 0.7, -1]


def test_images_without_boxes():
    errors = errors_of_image(image_of())
    assert len(errors.scores) == len(errors.found) == 0 and lrp_sum(errors, 0.5) == 0
    assert lrp_sum(errors_of_image(image_of(objects=[(0, 0, 0, 5, 5)])), 0.5) == 1
