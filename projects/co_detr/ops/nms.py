"""Non-maximum suppression."""

import torch
from torch import Tensor

from .assignment import pairwise_iou
from .torchvision import operators

CHUNK = 256  # boxes that are compared with each other, and then at once with all that follow


def nms(
    boxes: Tensor, scores: Tensor, threshold: float, group: Tensor | None = None, limit: int | None = None
) -> Tensor:
    """Keep the boxes that no higher-scoring kept box of their group overlaps by more than `threshold`.

    Args:
        boxes: (N, 4). Of equal scores the first box goes first.
        scores: (N,).
        group: (N,) int64, such as the level of each box; None: they are all of one.
        limit: keep the best so many.

    Returns:
        (K,) int64, best first.
    """
    torchvision = operators(boxes.device)
    if torchvision is None:
        return suppress(boxes, scores, threshold, group, limit)
    group = torch.zeros_like(scores, dtype=torch.int64) if group is None else group
    return torchvision.batched_nms(boxes.float(), scores.float(), group, threshold)[:limit]


@torch.no_grad()
def suppress(boxes: Tensor, scores: Tensor, threshold: float, group: Tensor | None, limit: int | None) -> Tensor:
    """`nms` by tensor operations alone."""
    order = scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    number = 0
    while len(order) and (limit is None or number < limit):
        head, order = order[:CHUNK], order[CHUNK:]
        overlaps = _overlaps(boxes, group, head, head, threshold).triu(1)
        # A box falls if one before it stays that overlaps it: true of all boxes as soon as nothing changes any more.
        stays = torch.ones_like(head, dtype=torch.bool)
        while True:
            again = ~(overlaps & stays[:, None]).any(0)
            if torch.equal(again, stays):
                break
            stays = again
        head = head[stays]
        kept.append(head)
        number += len(head)
        order = order[~_overlaps(boxes, group, head, order, threshold).any(0)]
    return torch.cat(kept)[:limit] if kept else order


def _overlaps(boxes: Tensor, group: Tensor | None, some: Tensor, others: Tensor, threshold: float) -> Tensor:
    """(N, M) bool, whether boxes of two lists of indices overlap by more than `threshold`, and are of one group."""
    overlaps = pairwise_iou(boxes[some], boxes[others]) > threshold
    return overlaps if group is None else overlaps & (group[some][:, None] == group[others])
