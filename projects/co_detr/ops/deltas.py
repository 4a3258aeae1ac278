"""How a box regressor says where to move a box (R-CNN, arXiv 1311.2524, appendix C)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_GROWTH = math.log(1000 / 16)  # of a side, as a logarithm, so that no prediction overflows


def center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(…, 2) centres and (…, 2) sizes of boxes (…, 4)."""
    corner, opposite = boxes.split(2, dim=-1)
    return (corner + opposite) / 2, opposite - corner


def box_deltas(source: Tensor, target: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """(…, 4) deltas that take `source` to `target`: shifts of the centre in sizes of the source, and logarithms of the
    ratios of the sizes; each times its weight.

    Args:
        source, target: (…, 4), with positive width and height.
    """
    center, size = center_and_size(source)
    to_center, to_size = center_and_size(target)
    deltas = torch.cat([(to_center - center) / size, (to_size / size).log()], dim=-1)
    return deltas * deltas.new_tensor(weights)


def apply_deltas(boxes: Tensor, deltas: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """(…, 4) boxes moved by `deltas` (…, 4), as `box_deltas` makes them. A side grows 62.5-fold at most."""
    center, size = center_and_size(boxes)
    shift, growth = (deltas / deltas.new_tensor(weights)).split(2, dim=-1)
    center, half = center + shift * size, growth.clamp(max=MAX_GROWTH).exp() * size / 2
    return torch.cat([center - half, center + half], dim=-1)
