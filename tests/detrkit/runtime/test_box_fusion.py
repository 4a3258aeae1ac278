"""Weighted box fusion against a loop over boxes, as the paper describes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit.runtime.box_fusion import weighted_boxes_fusion

from .test_soft_nms import iou


def by_loop(boxes, scores, classes, passes, threshold):
    """Sections 3.1 to 3.6 of arXiv 1910.13302, one box after the other: rows of (score, class, box), best first."""
    clusters = []
    for n in sorted(range(len(scores)), key=lambda n: -scores[n]):
        if scores[n] <= 0:
            continue
        best, match = threshold, None
        for cluster in clusters:
            overlap = iou(cluster["box"], boxes[n])
            if cluster["class"] == classes[n] and overlap > best:
                best, match = overlap, cluster
        if match is None:
            match = {"class": classes[n], "members": []}
            clusters.append(match)
        match["members"].append(n)
        total = sum(scores[m] for m in match["members"])
        match["box"] = [sum(scores[m] * boxes[m][side] for m in match["members"]) / total for side in range(4)]
    rows = []
    for cluster in clusters:
        count = len(cluster["members"])
        mean = sum(scores[m] for m in cluster["members"]) / count
        rows.append((mean * min(count, passes) / passes, cluster["class"], cluster["box"]))
    return sorted(rows, key=lambda row: -row[0])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 40),
    number_of_classes=st.integers(1, 4),
    passes=st.integers(1, 6),
    threshold=st.sampled_from([0.3, 0.55, 0.8]),
)
def test_it_is_the_loop(seed, count, number_of_classes, passes, threshold):
    torch.manual_seed(seed)
    corner = torch.rand(count, 2, dtype=torch.float64) * 10
    boxes = torch.cat([corner, corner + 3 + torch.rand(count, 2, dtype=torch.float64) * 9], dim=1)
    scores, classes = torch.rand(count, dtype=torch.float64), torch.randint(0, number_of_classes, (count,)) * 7
    scores[torch.rand(count) < 0.1] = 0
    fused = weighted_boxes_fusion(boxes, scores, classes, passes, threshold)
    expected = by_loop(boxes.tolist(), scores.tolist(), classes.tolist(), passes, threshold)
    assert fused[2].tolist() == [kind for _, kind, _ in expected]
    torch.testing.assert_close(fused[1], torch.tensor([s for s, _, _ in expected], dtype=torch.float64))
    torch.testing.assert_close(
        fused[0], torch.tensor([box for _, _, box in expected], dtype=torch.float64).reshape(-1, 4)
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), passes=st.integers(1, 5))
def test_properties(seed, count, passes):
    """Scores in order and at most the highest; boxes within their hull; the order of the input does not matter."""
    torch.manual_seed(seed)
    corner = torch.rand(count, 2) * 10
    boxes, scores = torch.cat([corner, corner + 3 + torch.rand(count, 2) * 9], dim=1), torch.rand(count) + 0.01
    classes = torch.randint(0, 3, (count,))
    fused = weighted_boxes_fusion(boxes, scores, classes, passes)
    assert (fused[1].diff() <= 0).all() and fused[1].max() <= scores.max() + 1e-6
    assert (fused[0] >= boxes.amin(0) - 1e-4).all() and (fused[0] <= boxes.amax(0) + 1e-4).all()
    assert fused[0].dtype == torch.float32 and set(fused[2].tolist()) == set(classes.tolist())
    shuffled = torch.randperm(count)
    again = weighted_boxes_fusion(boxes[shuffled], scores[shuffled], classes[shuffled], passes)
    torch.testing.assert_close(again[0], fused[0])
    torch.testing.assert_close(again[1], fused[1])


def test_an_example():
    """Two of three passes see an object: the weighted mean of their boxes, and two thirds of their mean score."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [0, 0, 10, 10]])
    fused = weighted_boxes_fusion(boxes, torch.tensor([0.8, 0.4, 0.6, 0.9]), torch.tensor([1, 1, 1, 2]), 3)
    assert fused[1].tolist() == pytest.approx([0.4, 0.3, 0.2]) and fused[2].tolist() == [1, 2, 1]
    assert fused[0][0].tolist() == pytest.approx([1 / 3, 0, 10 + 1 / 3, 10], abs=1e-5)


def test_nothing_gives_nothing():
    empty = weighted_boxes_fusion(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2)
    assert [tuple(x.shape) for x in empty] == [(0, 4), (0,), (0,)] and empty[2].dtype == torch.int64
