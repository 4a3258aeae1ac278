"""Assign ground truths to boxes, and sample boxes for a loss.

Ground truths are padded (see `PaddedGroundTruth`): `objects` (B, G, 4) boxes, `present` (B, G) bool, G at least 1. An
assignment is (B, A) int64: the index of a ground truth of the image, `BACKGROUND` or `IGNORED`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .deltas import center_and_size

BACKGROUND, IGNORED = -1, -2
MIN_AREA = 1e-6
INSIDE = 0.01  # smallest distance in pixels from the centre of an anchor to the border of its object


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (…, N, M) of boxes (…, N, 4) and (…, M, 4)."""
    (l1, t1, r1, b1), (l2, t2, r2, b2) = boxes[..., None, :].unbind(-1), others[..., None, :, :].unbind(-1)
    width = (torch.minimum(r1, r2) - torch.maximum(l1, l2)).clamp_(min=0)
    height = (torch.minimum(b1, b2) - torch.maximum(t1, t2)).clamp_(min=0)
    inter = width.mul_(height)
    union = ((r1 - l1) * (b1 - t1) + (r2 - l2) * (b2 - t2)).sub_(inter)
    return inter.div_(union.clamp_(min=MIN_AREA))


@torch.no_grad()
def assign_by_iou(
    boxes: Tensor,
    objects: Tensor,
    present: Tensor,
    usable: Tensor,
    positive: float,
    negative: float,
    low_quality: float | None = None,
) -> Tensor:
    """Assign each box by its highest IoU, as Faster R-CNN does (arXiv 1506.01497, section 3.1.2).

    The ground truth of the highest IoU if that is at least `positive`, background if it is below `negative`, else
    ignored.

    Args:
        boxes: (A, 4), or (B, A, 4).
        usable: (B, A) bool; the other boxes are ignored.
        low_quality: each ground truth also gets the boxes of its own highest IoU, if that is at least this value. If
            several ground truths claim a box, the last one gets it. None: off.
    """
    iou = pairwise_iou(objects, boxes)  # (B, G, A)
    iou.masked_fill_(~(present[..., None] & usable[:, None]), -1)
    best, assigned = iou.max(dim=1)
    assigned = torch.where(best >= positive, assigned, torch.where(best < negative, BACKGROUND, IGNORED))
    if low_quality is not None:
        highest = iou.amax(-1, keepdim=True)
        chosen = (iou == highest) & (highest >= low_quality)
        order = torch.arange(1, iou.shape[1] + 1, device=iou.device)[:, None]
        last = (chosen * order).amax(1) - 1
        assigned = torch.where(last >= 0, last, assigned)
    return assigned.masked_fill(~usable, IGNORED)


@torch.no_grad()
def assign_by_statistics(
    anchors: Sequence[Tensor], objects: Tensor, present: Tensor, usable: Tensor, candidates: int = 9
) -> Tensor:
    """Assign anchors by the statistics of their IoUs: ATSS (arXiv 1912.02424, section 4.1).

    The candidates of a ground truth are the anchors of each level with the nearest centres. A candidate is positive if
    its IoU is at least the mean plus the standard deviation of the candidates' IoUs, and its centre lies inside the
    ground truth. If several ground truths claim an anchor, the one with the highest IoU gets it.

    Args:
        anchors: per level (A_l, 4).
        usable: (B, A) bool for the anchors of all levels; the others are ignored.
        candidates: the largest number of candidates per level.
    """
    boxes = torch.cat(list(anchors))
    centers, _ = center_and_size(boxes)
    middle, _ = center_and_size(objects)
    nearest, first = [], 0
    for count in map(len, anchors):
        part = slice(first, first + count)
        distance = (middle[:, :, None] - centers[part]).square().sum(-1).sqrt()
        distance = distance.masked_fill(~usable[:, None, part], torch.inf)
        nearest.append(distance.topk(min(candidates, count), largest=False).indices + first)
        first += count
    chosen = torch.cat(nearest, dim=-1)  # (B, G, K)

    iou = pairwise_iou(objects[:, :, None], boxes[chosen])[:, :, 0]
    counted = usable.gather(1, chosen.flatten(1)).view_as(chosen)
    number = counted.sum(-1, keepdim=True)
    mean = (iou * counted).sum(-1, keepdim=True) / number.clamp(min=1)
    spread = ((iou - mean).square() * counted).sum(-1, keepdim=True) / (number - 1).clamp(min=1)
    at = centers[chosen]
    depth = torch.cat([at - objects[:, :, None, :2], objects[:, :, None, 2:] - at], dim=-1).amin(-1)
    good = (iou >= mean + spread.sqrt()) & (depth > INSIDE) & counted & present[..., None]

    overlap = iou.new_full((*present.shape, len(boxes)), -1).scatter(2, chosen, iou.masked_fill(~good, -1))
    best, assigned = overlap.max(1)
    return assigned.masked_fill(best < 0, BACKGROUND).masked_fill(~usable, IGNORED)


@torch.no_grad()
def sample(assigned: Tensor, number: int, positives: int) -> Tensor:
    """Sample `number` boxes of each image without replacement: at most `positives` positives, the rest background.

    Args:
        assigned: (B, A).

    Returns:
        (B, min(number, A)) int64 indices, positives first; padded with -1 if an image has too few boxes.
    """
    random_order = torch.rand(assigned.shape, device=assigned.device)
    first = random_order.masked_fill(assigned < 0, -1).topk(min(positives, assigned.shape[1]))
    priority = random_order.masked_fill(assigned != BACKGROUND, -1)
    before = priority.gather(1, first.indices)
    priority.scatter_(1, first.indices, torch.where(first.values >= 0, first.values + 1, before))
    best = priority.topk(min(number, assigned.shape[1]))
    return best.indices.masked_fill(best.values < 0, -1)
