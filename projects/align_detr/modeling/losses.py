"""The losses of Align-DETR as pure functions (arXiv 2304.07527, sections 3.2-3.4), and losses to compare with.

P is the number of matched (query, ground truth) pairs of all images and decoder layers together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_QUALITY = 0.01
# As in detrex.layers.box_iou, so that the numbers agree. In [0, 1] units it lowers the IoU of an object of 8 x 8
# pixels in a 1333 x 800 image by 2 %.
AREA_EPS = 1e-6
# Class balance in the papers of the two losses. It is not Align-DETR's alpha.
FOCAL_ALPHA = 0.25  # factor of the matched entries
VARIFOCAL_ALPHA = 0.75  # factor of the unmatched ones


def iou_and_giou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of boxes that broadcast against each other.

    Args:
        boxes1, boxes2: (..., 4), cxcywh in [0, 1]. Boxes without area are allowed.

    Returns:
        IoU in [0, 1] and GIoU in [-1, 1], both of the broadcast shape without its last dimension.
    """
    (cx1, cy1, w1, h1), (cx2, cy2, w2, h2) = boxes1.unbind(-1), boxes2.unbind(-1)
    left1, right1, left2, right2 = cx1 - w1 / 2, cx1 + w1 / 2, cx2 - w2 / 2, cx2 + w2 / 2
    top1, bottom1, top2, bottom2 = cy1 - h1 / 2, cy1 + h1 / 2, cy2 - h2 / 2, cy2 + h2 / 2

    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    inter = width * height
    union = w1 * h1 + w2 * h2 - inter
    hull_width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    hull = hull_width * hull_height

    iou = inter / (union + AREA_EPS)
    return iou, iou - (hull - union) / (hull + AREA_EPS)


def quality(scores: Tensor, ious: Tensor, alpha: float) -> Tensor:
    """The joint quality of a matched pair, t = max(s^alpha * u^(1 - alpha), 0.01), without gradient.

    Args:
        scores: (P,) score s of the ground truth's class, in [0, 1].
        ious: (P,) IoU u of the predicted box with the ground truth, in [0, 1].

    Returns:
        (P,) in [0.01, 1].
    """
    scores, ious = scores.detach(), ious.detach()
    return (scores**alpha * ious ** (1 - alpha)).clamp(min=MIN_QUALITY)


def rank_weights(quality: Tensor, group: Tensor, tau: float) -> Tensor:
    """w = exp(-r / tau), r = 0, 1, ... the rank of a pair by quality among the pairs of its group, best first.

    Args:
        quality: (P,).
        group: (P,) int64, equal for the queries matched to the same ground truth in the same layer.

    Returns:
        (P,) in (0, 1]; the best pair of every group has 1. Pairs of equal quality keep their order.
    """
    best_first = quality.argsort(descending=True, stable=True)
    order = best_first[group[best_first].argsort(stable=True)]
    sorted_group = group[order]
    group_start = torch.searchsorted(sorted_group, sorted_group)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - group_start
    return torch.exp(-rank.to(quality.dtype) / tau)


class _SplitEntries(torch.autograd.Function):
    """`split_entries`; its forward pass computes the gradient too, in one pass over the entries."""

    @staticmethod
    def forward(ctx, logits: Tensor, index: tuple[Tensor, ...], gamma: float) -> tuple[Tensor, Tensor]:
        slope = torch.empty_like(logits, memory_format=torch.contiguous_format)
        loss = _focal_bce(logits.flatten(1), slope.flatten(1), gamma)
        ctx.save_for_backward(slope, *index)
        matched = logits[index]
        loss.index_add_(0, index[0], -matched.sigmoid() ** gamma * F.softplus(matched))
        return loss, matched

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor, grad_matched: Tensor) -> tuple[Tensor, None, None]:
        slope, *index = ctx.saved_tensors
        grad = slope * grad_loss[:, None, None, None]
        grad[tuple(index)] = grad_matched
        return grad, None, None


def _focal_bce(logits: Tensor, slope: Tensor, gamma: float) -> Tensor:
    """Sum s^gamma * BCE(s, 0) over (L, n) logits to (L,); write the derivative of each summand to `slope` (L, n)."""
    # On a CPU, memory traffic limits the speed: process parts that fit into the cache.
    columns = (1 << 17) // len(logits) if logits.device.type == "cpu" else logits.shape[1]
    total = logits.new_zeros(len(logits))
    for z, dz in zip(logits.split(columns, 1), slope.split(columns, 1), strict=True):
        score, bce = z.sigmoid(), F.softplus(z)
        weight = score**gamma
        torch.addcmul(score, 1 - score, bce, value=gamma, out=dz).mul_(weight)
        total += torch.linalg.vecdot(weight, bce)
    return total


def split_entries(logits: Tensor, index: tuple[Tensor, ...], gamma: float) -> tuple[Tensor, Tensor]:
    """Return the loss of the unmatched (query, class) entries, and the logits of the matched ones.

    Args:
        logits: (L, B, N, C) float32.
        index: layer, image, query and class of the matched entries, each (P,) int64; no entry twice.

    Returns:
        (L,) sum of s^gamma * BCE(s, 0) over the unmatched entries of each layer, and (P,) the matched logits. The
        gradient flows through s^gamma. There is no second derivative.
    """
    return _SplitEntries.apply(logits, index, gamma)


# Classification losses of the matched entries, elementwise: logits (P,) and constant targets y (P,) in [0, 1] to (P,).
# The gradient flows through every factor that depends on s = sigmoid(z).


def ia_bce_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """BCE(s, y): Align-DETR's released code, with y the joint quality; also DEIM (arXiv 2412.04234), equation 4, with
    y = IoU^gamma. `gamma` is unused here; it only affects unmatched entries."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def align_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """|y - s|^gamma * BCE(s, y): Align-DETR's later paper, with y the joint quality; also the quality focal loss of GFL
    (arXiv 2006.04388), equation 2, with y the IoU, and Stable-DINO's loss (arXiv 2304.04742), equation 3."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # Below gamma = 1 the power has no finite slope at zero.
    distance = (target - logits.sigmoid()).abs().clamp(min=torch.finfo(bce.dtype).eps)
    return distance**gamma * bce


def focal_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """0.25 * |y - s|^gamma * BCE(s, y), with y = 1 before rank weights: the focal loss (arXiv 1708.02002), equation 5,
    continued to targets between 0 and 1 as in GFL."""
    return FOCAL_ALPHA * align_loss(logits, target, gamma)


def varifocal_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """y * BCE(s, y), with y the IoU: VarifocalNet (arXiv 2008.13367), equation 2.

    By that equation an entry with y = 0 counts as unmatched: 0.75 * s^gamma * BCE(s, 0).
    """
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.where(target > 0, target, VARIFOCAL_ALPHA * logits.sigmoid() ** gamma) * bce


class Matched(NamedTuple):
    """Inputs of the target functions below."""

    quality: Tensor  # (P,), of `quality`
    iou: Tensor  # (P,) in [0, 1], without gradient
    example: Tensor  # (P,) int64 in [0, num_examples), equal for the pairs of one image in one layer
    num_examples: int


def joint_quality(pairs: Matched, gamma: float) -> Tensor:
    """Align-DETR's target t, before rank weights."""
    return pairs.quality


def certainty(pairs: Matched, gamma: float) -> Tensor:
    """A constant 1: focal loss."""
    return torch.ones_like(pairs.iou)


def overlap(pairs: Matched, gamma: float) -> Tensor:
    """u, the IoU."""
    return pairs.iou


def powered_overlap(pairs: Matched, gamma: float) -> Tensor:
    """u^gamma."""
    return pairs.iou**gamma


def rescaled_overlap(pairs: Matched, gamma: float) -> Tensor:
    """u^2, rescaled so that the highest of each example is the example's highest u: u^2 / max u.

    Stable-DINO, section 3.2, which takes this rescaling for 900 queries. An example here is the matched pairs of an
    image in one layer.
    """
    highest = pairs.iou.new_zeros(pairs.num_examples).scatter_reduce(0, pairs.example, pairs.iou, "amax")
    # Divide first: the square of a small IoU would lose digits.
    return pairs.iou * (pairs.iou / highest.clamp(min=torch.finfo(pairs.iou.dtype).tiny)[pairs.example])


class ClassificationLoss(NamedTuple):
    """A classification loss: Σ matched(z, w * target) + unmatched * Σ s^gamma * BCE(s, 0), w the rank weight."""

    matched: Callable[[Tensor, Tensor, float], Tensor]
    target: Callable[[Matched, float], Tensor]
    unmatched: float = 1.0


CLASSIFICATION_LOSSES = {
    "ia_bce_loss": ClassificationLoss(ia_bce_loss, joint_quality),
    "align_loss": ClassificationLoss(align_loss, joint_quality),
    "focal_loss": ClassificationLoss(focal_loss, certainty, unmatched=1 - FOCAL_ALPHA),
    "quality_focal_loss": ClassificationLoss(align_loss, overlap),
    "varifocal_loss": ClassificationLoss(varifocal_loss, overlap, unmatched=VARIFOCAL_ALPHA),
    "matchability_aware_loss": ClassificationLoss(ia_bce_loss, powered_overlap),
    "position_supervised_loss": ClassificationLoss(align_loss, rescaled_overlap),
}
"""Values of `loss_class_type`: Align-DETR's two losses (released code, later paper), and five to compare with."""
