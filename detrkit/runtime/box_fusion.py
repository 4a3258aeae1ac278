"""Weighted box fusion (Solovyev et al., arXiv 1910.13302)."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_boxes_fusion(
    boxes: Tensor, scores: Tensor, classes: Tensor, passes: int, threshold: float = 0.55
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the detections of several passes over one image.

    Take the boxes by score, best first. A box joins the fused box of its class with the highest IoU if that is above
    `threshold`, and otherwise begins a new one. A fused box of the boxes b_1 ... b_T with scores s_1 ... s_T is

        b = Σ s_i b_i / Σ s_i,        s = Σ s_i / T · min(T, `passes`) / `passes`

    b is computed anew with each box that joins. The classes are worked on in parallel: step r takes the box of rank r
    of each class.

    Args:
        boxes: (N, 4), xyxy, of all passes.
        scores: (N,), at least 0. Boxes with a score of 0 are left out.
        classes: (N,) int64.
        passes: number of passes. An object that some of them missed gets a lower score.
        threshold: IoU above which boxes are of one object.

    Returns:
        Fused boxes (K, 4), scores (K,) and classes (K,), best first, in the types of the inputs.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > 0]
    if not len(order):
        return boxes[:0], scores[:0], classes[:0]
    kinds, counts = classes[order].unique(return_counts=True)
    largest = counts.argsort(descending=True, stable=True)  # so that the classes with a box of rank r come first
    kinds, counts = kinds[largest], counts[largest]
    members = torch.full((len(kinds), int(counts[0])), -1, device=boxes.device)  # (C, R), by rank; -1: none
    for row, kind in enumerate(kinds):
        members[row, : counts[row]] = order[classes[order] == kind]

    fused = boxes.new_zeros(*members.shape, 4, dtype=torch.float64)
    total, joined = fused[..., 0].clone(), torch.zeros_like(members)  # sum of scores, and T
    number = torch.zeros_like(counts)  # of fused boxes of each class
    for rank in range(members.shape[1]):
        row = torch.arange(int((counts > rank).sum()), device=boxes.device)
        member = members[row, rank]
        box, score = boxes[member].double(), scores[member].double()
        begun = fused[row, : rank + 1]  # a class has at most `rank` fused boxes: the last one is empty
        iou = _iou(begun, box[:, None]).masked_fill(joined[row, : rank + 1] == 0, -1.0)
        best, place = iou.max(dim=1)
        is_new = best <= threshold
        place = torch.where(is_new, number[row], place)
        number[row] += is_new
        before = total[row, place]
        total[row, place] = before + score
        fused[row, place] += (box - fused[row, place]) * (score / (before + score))[:, None]
        joined[row, place] += 1

    row, place = joined.nonzero(as_tuple=True)
    count = joined[row, place]
    score = total[row, place] / count * count.clamp(max=passes) / passes
    best = score.argsort(descending=True, stable=True)
    return fused[row, place][best].to(boxes.dtype), score[best].to(scores.dtype), kinds[row][best]


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4), xyxy, that are broadcast."""
    corner, end = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (end - corner).clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(-1) for x in (a, b)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-9)
