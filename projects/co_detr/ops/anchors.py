"""Anchors: boxes of a few sizes and shapes at every cell of a feature pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor


def make_anchors(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    scales: Sequence[float],
    ratios: Sequence[float],
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Make the anchors of each level: row by row, cell by cell; in a cell, all scales of the first ratio come first.

    Args:
        sizes: (rows, columns) of each level.
        strides: pixels between the cells of each level. Cell (x, y) is at pixel (x · stride, y · stride).
        scales: sides of the squares of equal area, in strides.
        ratios: height over width.

    Returns:
        Per level (rows · columns · A, 4) float32, A = len(scales) · len(ratios).
    """
    shape = torch.tensor(ratios, dtype=torch.float32, device=device).sqrt()
    side = torch.tensor(scales, dtype=torch.float32, device=device)
    half = torch.stack([side / shape[:, None], side * shape[:, None]], dim=-1).flatten(0, 1) / 2
    around = torch.cat([-half, half], dim=-1)
    levels = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
        cells = torch.stack([x, y, x, y], dim=-1).flatten(0, 1)
        levels.append(((cells[:, None] + around) * stride).flatten(0, 1))
    return levels
