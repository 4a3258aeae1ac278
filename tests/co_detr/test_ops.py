"""The parts of anchor-based heads, against recorded numbers and against loops."""

import math

import pytest
import torch

from co_detr.ops import (
    BACKGROUND,
    IGNORED,
    apply_deltas,
    assign_by_iou,
    assign_by_statistics,
    box_deltas,
    make_anchors,
    nms,
    pairwise_iou,
    pyramid_roi_align,
    roi_align,
    sample,
)
from co_detr.ops.nms import suppress


def objects_of(case):
    """Return the padded objects of two images; the second has none."""
    boxes = case.input["gt_boxes"]
    padded = torch.zeros(2, max(1, len(boxes)), 4)
    present = torch.zeros(padded.shape[:2], dtype=torch.bool)
    padded[0, : len(boxes)], present[0, : len(boxes)] = boxes, True
    return padded, present


@pytest.mark.parametrize("number", range(4))
def test_atss_assignment_is_the_recorded_one(golden, number):
    """0, 1, 5 and 40 objects; the other image has no objects and stays background."""
    case = golden(f"atss_assignment_{number}")
    anchors = make_anchors(case.config["sizes"], case.config["strides"], [case.config["octave_base_scale"]], [1.0])
    if "anchors" in case.input:
        torch.testing.assert_close(torch.cat(anchors), case.input["anchors"])
    usable = torch.ones(2, sum(map(len, anchors)), dtype=torch.bool)
    assigned = assign_by_statistics(anchors, *objects_of(case), usable, case.config["topk"])
    assert torch.equal(assigned[0], case.output["assigned"].long())
    assert (assigned[1] == BACKGROUND).all()


@pytest.mark.parametrize("number", range(4))
def test_rpn_assignment_is_the_recorded_one(golden, number):
    """The best anchor of an object is positive from IoU 0.3; positives, their objects and ignored anchors agree."""
    case = golden(f"rpn_assignment_{number}")
    config = case.config
    octave = [2 ** (i / config["scales_per_octave"]) for i in range(config["scales_per_octave"])]
    scales = [config["octave_base_scale"] * factor for factor in octave]
    anchors = torch.cat(make_anchors(config["sizes"], config["strides"], scales, config["ratios"]))
    assert len(anchors) == int(case.output["num_anchors"])
    torch.testing.assert_close(anchors[:9], case.output["first_anchors"])
    usable = torch.ones(2, len(anchors), dtype=torch.bool)
    limits = config["pos_iou"], config["neg_iou"], config["min_pos_iou"]
    assigned = assign_by_iou(anchors, *objects_of(case), usable, *limits)
    positive = (assigned[0] >= 0).nonzero().squeeze(1)
    assert torch.equal(positive, case.output["positive"])
    assert torch.equal(assigned[0, positive], case.output["positive_gt"])
    assert torch.equal((assigned[0] == IGNORED).nonzero().squeeze(1), case.output["ignored"])
    assert (assigned[1] == BACKGROUND).all()


@pytest.mark.parametrize("number", range(4))
def test_rcnn_assignment_is_the_recorded_one(golden, number):
    """Positive from IoU 0.5, also for the best proposal of an object; invalid proposals are ignored."""
    case = golden(f"rcnn_assignment_{number}")
    proposals = case.input["proposals"].expand(2, -1, -1)
    usable = torch.ones(proposals.shape[:2], dtype=torch.bool)
    usable[1, 3] = False
    assigned = assign_by_iou(proposals, *objects_of(case), usable, case.config["pos_iou"], case.config["neg_iou"])
    assert torch.equal(assigned[0], case.output["assigned"])
    assert assigned[1].tolist() == [IGNORED if i == 3 else BACKGROUND for i in range(proposals.shape[1])]


@pytest.mark.parametrize("name", ["roi_align_s0", "roi_align_s2"])
def test_roi_align_is_the_recorded_one(golden, name):
    """Output and gradient, including boxes outside the image and empty boxes."""
    case = golden(name)
    features = case.input["feature"].clone().requires_grad_()
    rois, config = case.input["rois"], case.config
    options = config["output_size"], config["spatial_scale"], config["sampling_ratio"]
    pooled = roi_align(features, rois[:, 1:], rois[:, 0].long(), *options)
    pooled.backward(case.input["grad_output"])
    torch.testing.assert_close(pooled, case.output["out"], rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(features.grad, case.output["grad_feature"], rtol=5e-4, atol=5e-5)


def test_nms_is_the_recorded_one(golden):
    """Without groups, by level, and with a limit."""
    case = golden("nms")
    boxes, scores, levels = (case.input[name] for name in ("boxes", "scores", "levels"))
    threshold = case.config["iou_threshold"]
    assert torch.equal(nms(boxes, scores, threshold, None, None), case.output["keep"])
    assert torch.equal(nms(boxes, scores, threshold, levels, None), case.output["keep_by_level"])
    assert torch.equal(nms(boxes, scores, threshold, levels, 7), case.output["keep_by_level"][:7])
    assert len(nms(boxes[:0], scores[:0], threshold, levels[:0], 7)) == 0


def test_nms_of_chains_is_the_loops():
    """A suppressed box suppresses nothing: dense boxes over many chunks equal a loop over single boxes."""
    torch.manual_seed(0)
    corner = torch.rand(700, 2) * 60
    boxes = torch.cat([corner, corner + 20 + torch.rand(700, 2) * 5], dim=1)
    scores, group = torch.rand(700), torch.randint(2, (700,))
    iou, kept = pairwise_iou(boxes, boxes), []
    for i in scores.argsort(descending=True).tolist():
        if not any(iou[i, j] > 0.5 and group[i] == group[j] for j in kept):
            kept.append(i)
    assert suppress(boxes, scores, 0.5, group, None).tolist() == kept


@pytest.mark.parametrize("name", ["box_deltas_1", "box_deltas_10"])
def test_box_deltas_are_the_recorded_ones(golden, name):
    """`box_deltas` and `apply_deltas` with half of the deltas equal the recorded values."""
    case = golden(name)
    weights, source = case.config["weights"], case.input["source"]
    deltas = box_deltas(source, case.input["target"], weights)
    torch.testing.assert_close(deltas, case.output["deltas"])
    torch.testing.assert_close(apply_deltas(source, deltas / 2, weights), case.output["applied"])
    torch.testing.assert_close(apply_deltas(source, deltas, weights), case.input["target"], rtol=1e-4, atol=1e-2)
    assert apply_deltas(source, torch.full((4,), 1e4)).isfinite().all()


def test_padding_is_assigned_nothing():
    """Anchors in padding are ignored, also in the statistics of ATSS."""
    anchors = make_anchors([(8, 8), (4, 4)], [8, 16], [4.0], [1.0])
    boxes = torch.cat(anchors)
    objects, present = torch.tensor([[[4.0, 4.0, 30.0, 30.0]]]), torch.ones(1, 1, dtype=torch.bool)
    usable = (boxes[None, :, :2] + boxes[None, :, 2:] < 2 * 32).all(-1)
    for assigned in (
        assign_by_statistics(anchors, objects, present, usable),
        assign_by_iou(boxes, objects, present, usable, 0.5, 0.4, 0.3),
    ):
        assert (assigned[~usable] == IGNORED).all() and (assigned[usable] >= 0).any()
    cut = [level[keep] for level, keep in zip(anchors, usable[0].split([64, 16]), strict=True)]
    alone = assign_by_statistics(cut, objects, present, torch.ones(1, int(usable.sum()), dtype=torch.bool))
    assert torch.equal(assign_by_statistics(anchors, objects, present, usable)[usable], alone[0])


def test_samples_are_positives_first_and_never_twice():
    """At most `positives` positives, then background, -1 when boxes run out; never an ignored box."""
    torch.manual_seed(0)
    assigned = torch.full((3, 50), BACKGROUND)
    assigned[0, :30], assigned[1, ::5], assigned[2] = 2, 0, IGNORED
    assigned[2, 7:10] = BACKGROUND
    sampled = sample(assigned, 20, 5)
    for i, (positives, negatives) in enumerate([(5, 15), (5, 15), (0, 3)]):
        chosen = sampled[i][sampled[i] >= 0]
        assert len(chosen) == len(chosen.unique()) == positives + negatives
        assert (assigned[i, chosen] >= 0).tolist() == [True] * positives + [False] * negatives
        assert not (assigned[i, chosen] == IGNORED).any()
    assert not torch.equal(sample(assigned, 20, 5), sampled)


def test_large_boxes_are_read_on_coarse_levels():
    """Sides below 28 cells use the first level, each doubling moves one level up; images do not mix."""
    maps = [torch.full((2, 3, 64 // 2**i, 64 // 2**i), float(i)) for i in range(3)]
    for level in maps:
        level[1] += 10
    sides = [1.0, 111.0, 113.0, 223.0, 225.0, 4000.0]
    boxes = torch.tensor([[20.0, 20.0, 20 + side, 20 + side] for side in sides])
    image = torch.tensor([0, 1, 0, 1, 0, 1])
    pooled = pyramid_roi_align(maps, [4, 8, 16], boxes, image, 7)
    assert pooled.shape == (6, 3, 7, 7)
    middle = pooled[:5, :, 0, 0].mean(1)
    expected = torch.tensor([0.0, 10, 1, 11, 2])
    torch.testing.assert_close(middle, expected)


def test_roi_align_in_half_precision_and_without_boxes():
    """Half-precision features are read in float32; an empty list of boxes keeps the gradient path."""
    features = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    pooled = roi_align(features, torch.tensor([[0.0, 0.0, 40.0, 30.0]]), torch.tensor([0]), 7, 1 / 8)
    assert pooled.dtype == torch.float32
    nothing = roi_align(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 7, 1 / 8)
    assert nothing.shape == (0, 4, 7, 7)
    (pooled.sum() + nothing.sum()).backward()
    assert features.grad.isfinite().all()


def test_anchors_have_one_area_for_all_ratios():
    """Anchors of one scale have one area; a ratio is height over width."""
    (level,) = make_anchors([(1, 2)], [16], [4.0, 8.0], [0.5, 2.0])
    width, height = (level[:, 2:] - level[:, :2]).unbind(-1)
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([64.0, 128.0] * 4))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 0.5, 2.0, 2.0] * 2))
    assert level[4:, ::2].sum(-1).tolist() == pytest.approx([32.0] * 4) and math.isfinite(level.sum())
