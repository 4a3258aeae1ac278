"""Levels that a feature pyramid adds at its coarse end."""

import torch.nn.functional as F
from torch import Tensor, nn


class LastLevelMaxPool(nn.Module):
    """p6 as every second cell of p5, in both directions (Feature Pyramid Networks, arXiv 1612.03144).

    Attributes:
        num_levels: number of levels that are added.
        in_feature: the level that they are computed from.
    """

    num_levels = 1
    in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to one map (B, C, ⌈H/2⌉, ⌈W/2⌉)."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]
