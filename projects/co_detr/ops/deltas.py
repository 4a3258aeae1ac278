"""Box regression targets and their inverse (R-CNN, arXiv 1311.2524, appendix C)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_GROWTH = math.log(1000 / 16)  # largest logarithm of a side's growth: exp() of a prediction must not overflow


def center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return centres (…, 2) and sizes (…, 2) of boxes (…, 4)."""
    corner, opposite = boxes.split(2, dim=-1)
    return (corner + opposite) / 2, opposite - corner


def box_deltas(source: Tensor, target: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Return the deltas (…, 4) that move `source` to `target`.

    Shift of the centre relative to the size of the source, logarithm of the ratio of the sizes; each times its weight.

    Args:
        source, target: (…, 4), with positive width and height.
    """
    center, size = center_and_size(source)
    to_center, to_size = center_and_size(target)
    deltas = torch.cat([(to_center - center) / size, (to_size / size).log()], dim=-1)
    return deltas * deltas.new_tensor(weights)


def apply_deltas(boxes: Tensor, deltas: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Move boxes (…, 4) by `deltas` (…, 4) of `box_deltas`. A side grows at most 62.5-fold."""
    center, size = center_and_size(boxes)
    shift, growth = (deltas / deltas.new_tensor(weights)).split(2, dim=-1)
    center, half = center + shift * size, growth.clamp(max=MAX_GROWTH).exp() * size / 2
    return torch.cat([center - half, center + half], dim=-1)
