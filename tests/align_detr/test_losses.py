import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align_detr.modeling.losses import (
    CLASSIFICATION_LOSSES,
    Matched,
    iou_and_giou,
    quality,
    rank_weights,
    split_entries,
)

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.01, 0.25, 0.5, 0.75, 1.0])), max_size=30)


@given(PAIRS, st.floats(0.1, 5))
def test_rank_weights_follow_the_definition(pairs, tau):
    """Protects the rank of each pair among those of its own ground truth, in any order and group size."""
    group = torch.tensor([g for g, _ in pairs], dtype=torch.long)
    t = torch.tensor([q for _, q in pairs], dtype=torch.float32)
    expected = []
    for i, (g, q) in enumerate(pairs):
        better = [j for j, (h, r) in enumerate(pairs) if h == g and (r > q or (r == q and j < i))]
        expected.append(math.exp(-len(better) / tau))
    assert torch.allclose(rank_weights(t, group, tau), torch.tensor(expected))


def test_quality_mixes_score_and_iou_and_is_a_constant():
    """Protects t = max(s^a u^(1-a), 0.01), its floor and that no gradient flows through it."""
    s = torch.tensor([0.5, 0.0, 1.0], requires_grad=True)
    u = torch.tensor([0.8, 0.9, 1.0], requires_grad=True)
    t = quality(s, u, 0.25)
    assert not t.requires_grad
    assert t.tolist() == pytest.approx([0.5**0.25 * 0.8**0.75, 0.01, 1.0])


def test_iou_and_giou_by_hand():
    """Protects both overlaps on boxes worked out by hand, one-pixel and zero-area boxes included."""
    boxes = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.01, 0.01]])
    others = boxes + torch.tensor([[0.1, 0, 0, 0], [0.4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    iou, giou = iou_and_giou(boxes, others)
    assert iou.tolist() == pytest.approx([2 / 6, 0.0, 0.0, 0.99], abs=1e-3)
    assert giou.tolist() == pytest.approx([2 / 6, -4 / 12, 0.0, 0.99], abs=1e-3)


ENTRY = tuple(torch.zeros(4, 1, dtype=torch.long))  # the first of all entries is the matched one


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_give_finite_losses_and_gradients(kind, gamma):
    """Protects training from a saturated query: logits of +-80 neither overflow nor give NaN gradients."""
    logits = torch.tensor([-80.0, -5.0, 0.0, 5.0, 80.0], requires_grad=True)
    target = torch.tensor([1.0, 0.01, 0.5, 0.7, 0.0])
    unmatched, _ = split_entries(logits.view(1, 1, 1, -1), ENTRY, gamma)
    loss = CLASSIFICATION_LOSSES[kind].matched(logits, target, gamma).sum() + unmatched.sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


BCE = -(0.9 * math.log(0.6) + 0.1 * math.log(0.4))  # s = 0.6, y = 0.9
BY_HAND = {
    "ia_bce_loss": BCE,
    "align_loss": 0.3**2 * BCE,
    "focal_loss": 0.25 * 0.3**2 * BCE,
    "quality_focal_loss": 0.3**2 * BCE,
    "varifocal_loss": 0.9 * BCE,
    "matchability_aware_loss": BCE,
    "position_supervised_loss": 0.3**2 * BCE,
}


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES)
def test_losses_by_hand(kind):
    """Protects each formula on one entry: s = 0.6, y = 0.9, gamma = 2."""
    z = torch.tensor([0.6], dtype=torch.float64).logit()
    y = torch.tensor([0.9], dtype=torch.float64)
    assert CLASSIFICATION_LOSSES[kind].matched(z, y, 2.0).item() == pytest.approx(BY_HAND[kind])


def test_unmatched_entries_by_hand():
    """Protects the loss of unmatched entries, its factor in each loss, and varifocal's case q = 0."""
    z, background = torch.tensor([0.6], dtype=torch.float64).logit(), -(0.6**2) * math.log(0.4)
    unmatched, matched = split_entries(torch.stack([z + 1, z]).view(1, 1, 2, 1), ENTRY, 2.0)
    assert unmatched.item() == pytest.approx(background)
    assert matched.item() == pytest.approx(z.item() + 1)
    factors = {kind: loss.unmatched for kind, loss in CLASSIFICATION_LOSSES.items() if loss.unmatched != 1}
    assert factors == {"focal_loss": 0.75, "varifocal_loss": 0.75}
    nothing = torch.zeros_like(z)
    assert CLASSIFICATION_LOSSES["varifocal_loss"].matched(z, nothing, 2.0).item() == pytest.approx(0.75 * background)


def test_focal_losses_at_their_end_points_by_hand():
    """Protects the limit of target 1: -0.25 (1 - s)^2 log s, the focal loss."""
    z, one = torch.tensor([0.6], dtype=torch.float64).logit(), torch.ones(1, dtype=torch.float64)
    loss = CLASSIFICATION_LOSSES["focal_loss"].matched(z, one, 2.0)
    assert loss.item() == pytest.approx(-0.25 * 0.4**2 * math.log(0.6))


@given(st.sampled_from([*CLASSIFICATION_LOSSES]), st.floats(0.02, 0.98), st.floats(-8, 8), st.floats(0.5, 3))
def test_every_loss_pulls_the_score_to_its_target(kind, y, z, gamma):
    """Protects the direction of training: the gradient has the sign of s - y, and vanishes where s = y."""
    z = torch.tensor([z, math.log(y / (1 - y))], dtype=torch.float64, requires_grad=True)
    target = torch.full_like(z, y)
    loss = CLASSIFICATION_LOSSES[kind].matched(z, target, gamma)
    slope, slope_at_target = torch.autograd.grad(loss.sum(), z)[0].tolist()
    error = z[0].sigmoid().item() - y
    assert slope * error >= 0 and (abs(error) < 1e-3 or slope != 0)
    assert slope_at_target == pytest.approx(0, abs=1e-6) and loss.min() >= 0


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES)
def test_gradient_of_matched_entries(kind, gamma):
    """Protects the slope of each loss, its focusing factor included, against numerical differentiation."""
    z = torch.linspace(-4, 4, 24, dtype=torch.float64).requires_grad_()
    y = torch.full_like(z, 0.73).index_fill(0, torch.tensor([0, 20]), 0)
    assert torch.autograd.gradcheck(lambda x: CLASSIFICATION_LOSSES[kind].matched(x, y, gamma), z)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_gradient_of_unmatched_entries(gamma):
    """Protects the written-out d/dz of s^g BCE(s, 0), against numerical differentiation."""
    z = torch.linspace(-4, 4, 24, dtype=torch.float64).view(2, 1, 3, 4).requires_grad_()
    index = tuple(torch.tensor([[0, 0, 1], [0, 0, 0], [0, 2, 1], [3, 0, 1]]))
    assert torch.autograd.gradcheck(lambda x: split_entries(x, index, gamma), z)


def test_targets_by_hand():
    """Protects the target of each loss: two pairs in the first image, one in the second, none in the third."""
    pairs = Matched(torch.tensor([0.6, 0.7, 0.8]), torch.tensor([0.5, 0.25, 0.0]), torch.tensor([0, 0, 1]), 3)
    targets = {kind: loss.target(pairs, 1.5).tolist() for kind, loss in CLASSIFICATION_LOSSES.items()}
    assert targets == {
        "ia_bce_loss": pytest.approx([0.6, 0.7, 0.8]),
        "align_loss": pytest.approx([0.6, 0.7, 0.8]),
        "focal_loss": [1, 1, 1],
        "quality_focal_loss": [0.5, 0.25, 0],
        "varifocal_loss": [0.5, 0.25, 0],
        "matchability_aware_loss": pytest.approx([0.5**1.5, 0.125, 0]),
        "position_supervised_loss": pytest.approx([0.5, 0.125, 0]),
    }


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32)), max_size=20), st.randoms())
def test_rescaled_targets_keep_the_order_and_the_best_overlap(pairs, random):
    """Protects the position-supervised target: it is at most the IoU, equal to it for the best pair of an image, rises
    with the IoU, and does not depend on the order of the pairs."""

    def targets(pairs):
        iou, image = torch.tensor([u for _, u in pairs]), torch.tensor([i for i, _ in pairs], dtype=torch.long)
        loss = CLASSIFICATION_LOSSES["position_supervised_loss"]
        return loss.target(Matched(iou, iou, image, 4), 2.0).tolist()

    target_of = dict(zip(pairs, targets(pairs), strict=True))
    for image in range(4):
        ranked = sorted(((u, y) for (i, u), y in target_of.items() if i == image), reverse=True)
        if ranked:
            assert ranked[0][1] == pytest.approx(ranked[0][0], rel=1e-5, abs=1e-20)
        assert [y for _, y in ranked] == sorted((y for _, y in ranked), reverse=True)
        assert all(y <= u * (1 + 1e-5) for u, y in ranked)
    shuffled = random.sample(pairs, len(pairs))
    assert targets(shuffled) == [target_of[pair] for pair in shuffled]


def test_unmatched_loss_of_a_large_stack():
    """Protects the sums over blocks: a stack of many blocks equals the plain formula, entries of any value."""
    z = torch.randn(2, 3, 400, 91, generator=torch.Generator().manual_seed(0)) * 4
    index = tuple(torch.tensor([[0, 1, 1], [2, 0, 1], [399, 0, 7], [90, 5, 0]]))
    z.requires_grad_()
    loss, matched = split_entries(z, index, 2.0)
    (grad,) = torch.autograd.grad(loss.sum(), z)
    rest = torch.ones_like(z)
    rest[index] = 0
    plain = (rest * z.sigmoid() ** 2 * torch.nn.functional.softplus(z)).sum((1, 2, 3))
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(grad, torch.autograd.grad(plain.sum(), z)[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(matched, z[index])
