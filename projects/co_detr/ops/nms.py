"""Non-maximum suppression."""

import torch
from torch import Tensor

from .assignment import pairwise_iou
from .torchvision import operators

CHUNK = 256  # boxes per block: compared with each other, then with all later boxes at once


def nms(
    boxes: Tensor, scores: Tensor, threshold: float, group: Tensor | None = None, limit: int | None = None
) -> Tensor:
    """Non-maximum suppression: drop each box whose IoU with a better kept box of its group is above `threshold`.

    Args:
        boxes: (N, 4). Boxes of equal score keep their order.
        scores: (N,).
        group: (N,) int64, such as the level of each box; None: one group.
        limit: the largest number of boxes kept.

    Returns:
        (K,) int64 indices of the kept boxes, best first.
    """
    torchvision = operators(boxes.device)
    if torchvision is None:
        return suppress(boxes, scores, threshold, group, limit)
    group = torch.zeros_like(scores, dtype=torch.int64) if group is None else group
    return torchvision.batched_nms(boxes.float(), scores.float(), group, threshold)[:limit]


@torch.no_grad()
def suppress(boxes: Tensor, scores: Tensor, threshold: float, group: Tensor | None, limit: int | None) -> Tensor:
    """Run `nms` with tensor operations only."""
    order = scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    number = 0
    while len(order) and (limit is None or number < limit):
        head, order = order[:CHUNK], order[CHUNK:]
        overlaps = _overlaps(boxes, group, head, head, threshold).triu(1)
        # A box is dropped if an earlier kept box overlaps it. Repeat until nothing changes: then this holds for all.
        kept_here = torch.ones_like(head, dtype=torch.bool)
        while True:
            again = ~(overlaps & kept_here[:, None]).any(0)
            if torch.equal(again, kept_here):
                break
            kept_here = again
        head = head[kept_here]
        kept.append(head)
        number += len(head)
        order = order[~_overlaps(boxes, group, head, order, threshold).any(0)]
    return torch.cat(kept)[:limit] if kept else order


def _overlaps(boxes: Tensor, group: Tensor | None, some: Tensor, others: Tensor, threshold: float) -> Tensor:
    """Return (N, M) bool: whether boxes `some` and `others` (indices) have an IoU above `threshold` and one group."""
    overlaps = pairwise_iou(boxes[some], boxes[others]) > threshold
    return overlaps if group is None else overlaps & (group[some][:, None] == group[others])
