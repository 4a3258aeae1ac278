import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align_detr.modeling import MixedMatcher


def make(num_images, num_queries, objects, seed=0, classes=7):
    g = torch.Generator().manual_seed(seed)
    outputs = {
        "pred_logits": torch.randn(num_images, num_queries, classes, generator=g),
        "pred_boxes": torch.rand(num_images, num_queries, 4, generator=g) * 0.4 + 0.2,
    }
    targets = [
        {
            "labels": torch.randint(classes, (n,), generator=g),
            "boxes": torch.rand(n, 4, generator=g) * 0.4 + 0.2,
        }
        for n in objects
    ]
    return outputs, targets


@pytest.mark.parametrize("k", [1, 2, 3])
def test_recorded_pairs(golden, k):
    """Protects agreement with the pairs that the released matcher finds."""
    case = golden(f"mixed_matcher_k{k}")
    number = case.config.pop("k")
    matched = MixedMatcher(**case.config)(case.input["outputs"], case.input["targets"], number)
    for ours, theirs in zip(matched, case.output["indices"], strict=True):
        ours, theirs = (torch.stack(list(pairs), dim=1).tolist() for pairs in (ours, theirs))
        assert sorted(ours) == sorted(theirs)


@settings(deadline=None)
@given(
    st.integers(1, 12), st.lists(st.integers(0, 15), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 99)
)
def test_every_object_gets_its_share(num_queries, objects, k, seed):
    """Protects k_i = clamp(N // 2G, 1, k) per image, queries used once, G = 0, k*G > N and G > N."""
    outputs, targets = make(len(objects), num_queries, objects, seed)
    for (query, index), size in zip(MixedMatcher(2, 5, 2)(outputs, targets, k), objects, strict=True):
        assert query.dtype == index.dtype == torch.int64
        assert len(set(query.tolist())) == len(query)
        share = max(1, min(k, num_queries // (2 * size))) if size else 0
        if size <= num_queries:
            assert index.bincount(minlength=size).tolist() == [share] * size
        else:
            assert len(set(index.tolist())) == len(index) == num_queries


def test_a_crowded_image_does_not_starve_the_others():
    """Protects images that follow a crowded one in the batch: their match number stays k."""
    outputs, targets = make(2, 10, [9, 1])
    crowded, sparse = MixedMatcher(2, 5, 2)(outputs, targets, 4)
    assert len(crowded[0]) == 9 and len(sparse[0]) == 4


def test_the_assignment_is_the_cheapest():
    """Protects optimality, by trying every assignment of two objects to five queries."""
    outputs, targets = make(1, 5, [2], seed=3)
    matcher = MixedMatcher(2, 5, 2)
    query, index = matcher(outputs, targets)[0]
    from align_detr.modeling.matcher import GroundTruth, LayerStack

    stack = LayerStack(outputs["pred_logits"][None], outputs["pred_boxes"][None], [""], [1], [False])
    cost = matcher.cost(stack, GroundTruth.from_targets(targets))[0]
    best = min(cost[0, a] + cost[1, b] for a, b in itertools.permutations(range(5), 2))
    assert cost[index, query].sum() == pytest.approx(best.item())


def test_non_finite_predictions_are_named():
    """Protects the user from SciPy's error when the model has diverged. In training the matcher does not raise: the
    trainer reports the non-finite loss in every process."""
    outputs, targets = make(1, 5, [2])
    outputs["pred_boxes"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite.*learning rate"):
        MixedMatcher().eval()(outputs, targets)
    (pairs,) = MixedMatcher()(outputs, targets)
    assert len(pairs[0]) == 2
