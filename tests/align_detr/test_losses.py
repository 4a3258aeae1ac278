import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align_detr.modeling.losses import (
    CLASSIFICATION_LOSSES,
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
    target = torch.tensor([1.0, 0.01, 0.5, 0.7, 0.01])
    unmatched, _ = split_entries(logits.view(1, 1, 1, -1), ENTRY, gamma)
    loss = CLASSIFICATION_LOSSES[kind](logits, target, gamma).sum() + unmatched.sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_losses_by_hand():
    """Protects the three formulas on one entry: s = 0.6, y = 0.9, gamma = 2."""
    z = torch.tensor([0.6], dtype=torch.float64).logit()
    y = torch.tensor([0.9], dtype=torch.float64)
    bce = -(0.9 * math.log(0.6) + 0.1 * math.log(0.4))
    assert CLASSIFICATION_LOSSES["ia_bce_loss"](z, y, 2.0).item() == pytest.approx(bce)
    assert CLASSIFICATION_LOSSES["align_loss"](z, y, 2.0).item() == pytest.approx(0.3**2 * bce)
    unmatched, matched = split_entries(torch.stack([y, z]).view(1, 1, 2, 1), ENTRY, 2.0)
    assert unmatched.item() == pytest.approx(-(0.6**2) * math.log(0.4))
    assert matched.item() == 0.9


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_gradient_flows_through_the_focusing_terms(gamma):
    """Protects d/dz of s^g BCE(s, 0) and |y - s|^g BCE(s, y), against numerical differentiation."""
    z = torch.linspace(-4, 4, 24, dtype=torch.float64).view(2, 1, 3, 4).requires_grad_()
    index = tuple(torch.tensor([[0, 0, 1], [0, 0, 0], [0, 2, 1], [3, 0, 1]]))
    assert torch.autograd.gradcheck(lambda x: split_entries(x, index, gamma), z)
    y = torch.full_like(z, 0.73)
    assert torch.autograd.gradcheck(lambda x: CLASSIFICATION_LOSSES["align_loss"](x, y, gamma), z)


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
