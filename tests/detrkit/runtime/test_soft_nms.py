"""Soft-NMS against a loop over pairs, in evaluation, in `Detector` and in exported files."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit.runtime.soft_nms import checked_threshold, soft_nms


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def by_loop(boxes, scores, classes, threshold, min_score=1e-3):
    left = {n: float(score) for n, score in enumerate(scores)}
    result = []
    while left:
        best = max(left, key=lambda n: left[n])
        if left[best] < min_score:
            break
        result.append((best, left.pop(best)))
        for other in left:
            overlap = iou(boxes[best].tolist(), boxes[other].tolist())
            if classes[other] == classes[best] and overlap > threshold:
                left[other] *= 1 - overlap
    return result


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 30), threshold=st.sampled_from([0.1, 0.5, 0.8]))
def test_it_is_the_loop(seed, count, threshold):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 10, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(3, 12, (count, 2))], axis=1).astype(np.float32)
    scores, classes = random.uniform(0, 1, count).astype(np.float32), random.integers(0, 2, count)
    order, lowered = soft_nms(boxes, scores, classes, threshold)
    expected = by_loop(boxes, scores, classes, threshold)
    assert order.tolist() == [n for n, _ in expected]
    np.testing.assert_allclose(lowered, [score for _, score in expected], rtol=1e-4)
    assert (np.diff(lowered) <= 1e-7).all()


def test_a_duplicate_vanishes_and_another_class_stays():
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    order, scores = soft_nms(boxes, np.array([0.9, 0.8, 0.7]), np.array([1, 1, 2]), 0.8)
    assert order.tolist() == [0, 2] and scores.tolist() == pytest.approx([0.9, 0.7])


@pytest.mark.parametrize("value", [-0.1, 1.5, "0.8", True])
def test_invalid_thresholds_are_reported(value):
    with pytest.raises(ValueError, match="train.soft_nms=.*expected an IoU from 0 to 1"):
        checked_threshold(value, "train.soft_nms")


def test_evaluation_applies_it():
    """Evaluators receive the lowered scores; other fields follow the order."""
    from detrkit.training.evaluation import _softened

    instances = Instances((20, 20))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [12, 12, 20, 20]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8, 0.6]), torch.tensor([1, 1, 1])
    found = _softened({"instances": instances}, 0.8)["instances"]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.08])
    assert found.pred_boxes.tensor[2].tolist() == [1, 0, 10, 10]
