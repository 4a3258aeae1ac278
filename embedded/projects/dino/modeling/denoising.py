"""Contrastive denoising (DINO, arXiv 2203.03605, section 3.3): noisy ground truths as extra decoder queries."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from detrex.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from detrex.utils import inverse_sigmoid
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class DenoisingQueries(NamedTuple):
    """D = groups * group_size queries per image, to be put before the matching queries.

    With M objects in the fullest image, a group holds 2·M queries: place j is a slightly moved object j, to be told
    apart from place M + j, which is the same object moved by more than half its size. Places of objects that an
    image does not have are zero.

    Attributes:
        content: (B, D, E) label embeddings.
        boxes: (B, D, 4), the logits of cxcywh boxes in [0, 1].
        groups, group_size: their number, and the queries in each.
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
    """Draw the denoising queries of a batch; None where there is nothing to denoise.

    Args:
        targets: per image `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1].
        label_embedding: (…) int64 labels to (…, E).
        number: about this many positives, and as many negatives, per image: the number of groups is `number` over the
            objects of the fullest image, at least 1.
        label_noise: half of this share of the labels is replaced by random ones.
        box_noise: each corner coordinate moves by up to this many half sides; for negatives, by one to two times that.
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
    redrawn = torch.rand(shape, device=device) < 0.5 * label_noise
    labels = torch.where(redrawn, torch.randint(num_classes, shape, device=device), labels[:, None, None])

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
    """(D + N, D + N) bool, true where a query must not look: at another group's denoising queries."""
    group = torch.arange(groups, device=device).repeat_interleave(group_size)
    group = torch.cat([group, group.new_full((num_queries,), -1)])
    return (group[:, None] != group) & (group >= 0)
