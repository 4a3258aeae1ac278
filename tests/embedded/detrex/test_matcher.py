"""Hungarian matching."""

from itertools import permutations

import pytest
import torch
from detrex.layers import box_cxcywh_to_xyxy, generalized_box_iou
from detrex.modeling import HungarianMatcher


def random_batch(sizes, queries=9, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape):
        return torch.rand(*shape, 4, generator=generator) * 0.4 + 0.1

    outputs = {
        "pred_logits": torch.randn(len(sizes), queries, classes, generator=generator) * 3,
        "pred_boxes": boxes(len(sizes), queries),
    }
    targets = [{"labels": torch.randint(classes, (size,), generator=generator), "boxes": boxes(size)} for size in sizes]
    return outputs, targets


def as_sets(indices):
    return [set(zip(*(part.tolist() for part in pair), strict=True)) for pair in indices]


def test_pairs_match_recording(golden):
    """The recorded assignment, image by image."""
    case = golden("hungarian_matcher")
    indices = HungarianMatcher(**case.config)(case.input["outputs"], case.input["targets"])
    assert as_sets(indices) == as_sets(case.output["indices"])


@pytest.mark.parametrize("cost_class_type", ["focal_loss_cost", "ce_cost"])
def test_assignment_is_the_cheapest(cost_class_type):
    """Compared with every possible assignment and the cost formula of the papers."""
    weights = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}
    outputs, targets = random_batch([3, 2], queries=5)
    indices = HungarianMatcher(**weights, cost_class_type=cost_class_type)(outputs, targets)
    for b, target in enumerate(targets):
        logits, boxes = outputs["pred_logits"][b], outputs["pred_boxes"][b]
        if cost_class_type == "ce_cost":
            class_cost = -logits.softmax(-1)
        else:
            p = logits.sigmoid()
            class_cost = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
        cost = 2 * class_cost[:, target["labels"]] + 5 * torch.cdist(boxes, target["boxes"], p=1)
        cost -= 2 * generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(target["boxes"]))
        objects = range(len(target["labels"]))
        cheapest = min(
            permutations(range(5), len(objects)),
            key=lambda qs: sum(cost[q, o] for q, o in zip(qs, objects, strict=True)),
        )
        assert as_sets(indices)[b] == set(zip(cheapest, objects, strict=True))


def test_empty_and_crowded_images():
    """Without objects no pairs; with more objects than queries a pair for each query; also in one batch."""
    outputs, targets = random_batch([0, 12, 2])
    indices = HungarianMatcher()(outputs, targets)
    assert [len(queries) for queries, _ in indices] == [0, 9, 2]
    for queries, objects in indices:
        assert queries.dtype == objects.dtype == torch.int64
        assert len(queries.unique()) == len(queries) and len(objects.unique()) == len(objects)
    assert [len(queries) for queries, _ in HungarianMatcher()(*random_batch([0, 0]))] == [0, 0]


def test_neighbours_do_not_matter():
    """The other images of a batch do not change the pairs of an image."""
    outputs, targets = random_batch([4, 1, 3])
    together = as_sets(HungarianMatcher()(outputs, targets))
    for b in range(3):
        alone = HungarianMatcher()({key: value[b : b + 1] for key, value in outputs.items()}, targets[b : b + 1])
        assert as_sets(alone) == together[b : b + 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    """Costs of half-precision predictions are computed in float32: the same pairs as from their float32 values."""
    outputs, targets = random_batch([4, 3])
    half = {key: value.to(dtype) for key, value in outputs.items()}
    exact = {key: value.float() for key, value in half.items()}
    assert as_sets(HungarianMatcher()(half, targets)) == as_sets(HungarianMatcher()(exact, targets))


def test_extreme_logits():
    """With saturated logits a good query still costs less than a bad one."""
    outputs, targets = random_batch([2])
    outputs["pred_logits"] = torch.full_like(outputs["pred_logits"], -80)
    targets[0]["labels"] = torch.tensor([1, 2])
    outputs["pred_logits"][0, 5, 1] = outputs["pred_logits"][0, 6, 2] = 80
    assert as_sets(HungarianMatcher(cost_bbox=0.1, cost_giou=0.1)(outputs, targets)) == [{(5, 0), (6, 1)}]


def break_input(outputs, targets, what):
    if what == "pred_logits":
        outputs["pred_logits"][1, 3, 3] = torch.nan
    elif what == "pred_boxes":
        outputs["pred_boxes"][0, 2, 1] = torch.inf
    elif what == "boxes":
        targets[1]["boxes"][0, 0] = torch.nan
    else:
        targets[1]["labels"][0] = {"high": 4, "low": -1}[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pred_logits", "pred_logits holds non-finite values"),
        ("pred_boxes", "pred_boxes holds non-finite values"),
        ("boxes", r"targets\[1\]\['boxes'\] holds non-finite values"),
        ("high", r"targets\[1\]\['labels'\] holds class 4, but the model has classes 0..3"),
        ("low", r"targets\[1\]\['labels'\] holds class -1"),
    ],
)
def test_bad_input_is_named(what, message):
    """The message names a diverged model or a wrong label, instead of 'invalid numeric entries'."""
    outputs, targets = random_batch([2, 3])
    break_input(outputs, targets, what)
    with pytest.raises(ValueError, match=message) as error:
        HungarianMatcher()(outputs, targets)
    assert "\n" not in str(error.value)


def test_bad_options_are_refused():
    """Cost weights that are all zero are an error."""
    with pytest.raises(ValueError, match="all 0"):
        HungarianMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="'focal'"):
        HungarianMatcher(cost_class_type="focal")
