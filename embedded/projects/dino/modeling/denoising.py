"""Contrastive denoising (DINO, arXiv 2203.03605, section 3.3): noisy ground truths as extra decoder queries."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from detrex.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from detrex.utils import inverse_sigmoid
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class DenoisingQueries(NamedTuple):
    """D = groups * group_size queries per image; they precede the matching queries.

    With at most M objects per image, a group has 2·M queries. Query j is object j with small noise (positive), query
    M + j is the same object with larger noise (negative). Queries of missing objects are zero.

    Attributes:
        content: (B, D, E) label embeddings.
        boxes: (B, D, 4), logits of cxcywh boxes in [0, 1].
        groups, group_size: number of groups, and of queries per group.
    """

    content: Tensor
    boxes: Tensor
    groups: int
    group_size: int


def denoising_queries(
    targets: Sequence[Mapping[str, Tensor]],
    label_embedding: Callable[[Tensor], Tensor],
    num_classes: int,
    number: int,
    label_noise: float,
    box_noise: float,
) -> DenoisingQueries | None:
    """Sample the denoising queries of a batch; None if `number` is 0 or the batch has no objects.

    Args:
        targets: per image `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1].
        label_embedding: maps int64 labels (…) to (…, E).
        number: approximate positives per image; there are as many negatives. The number of groups is `number` divided
            by the largest number of objects in an image, at least 1.
        label_noise: half of this share of labels is replaced by uniform random classes.
        box_noise: each corner coordinate of a positive moves by up to `box_noise` half sides, of a negative by one to
            two times `box_noise` half sides.
    """
    fullest = max((len(target["labels"]) for target in targets), default=0)
    if number <= 0 or fullest == 0:
        return None
    groups = max(1, number // fullest)
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
    boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True).float()
    present = pad_sequence([torch.ones_like(target["labels"]) for target in targets], batch_first=True).bool()

    shape = (len(targets), groups, 2, fullest)  # the third axis is positives, negatives
    device = labels.device
    noisy = torch.rand(shape, device=device) < 0.5 * label_noise
    labels = torch.where(noisy, torch.randint(num_classes, shape, device=device), labels[:, None, None])

    amount = torch.rand(*shape, 4, device=device)
    amount[:, :, 1] += 1
    side = torch.randint(2, amount.shape, device=device) * 2 - 1
    half_sides = boxes[..., 2:].repeat(1, 1, 2) / 2
    shift = side * amount * half_sides[:, None, None] * box_noise
    corners = (box_cxcywh_to_xyxy(boxes)[:, None, None] + shift).clamp(0, 1)

    absent = ~present[:, None, None, :, None]
    return DenoisingQueries(
        content=label_embedding(labels).masked_fill(absent, 0).flatten(1, 3),
        boxes=inverse_sigmoid(box_xyxy_to_cxcywh(corners)).masked_fill(absent, 0).flatten(1, 3),
        groups=groups,
        group_size=2 * fullest,
    )


def denoising_attention_mask(groups: int, group_size: int, num_queries: int, device: torch.device) -> Tensor:
    """Return a mask (D + N, D + N), true where attention is not allowed: to denoising queries of another group."""
    group = torch.arange(groups, device=device).repeat_interleave(group_size)
    group = torch.cat([group, group.new_full((num_queries,), -1)])
    return (group[:, None] != group) & (group >= 0)
