"""Multi-scale deformable attention, the plain way: every level sampled, everything stacked, then weighted."""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_deform_attn(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Deformable DETR (Zhu et al., 2021), equation 3, with `grid_sample` per level and autograd throughout.

    Shapes as in `detrex.layers.multi_scale_deformable_attn`. Keeps all samples, (B·H, D, Lq, L·P), in memory.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    sizes = [(int(h), int(w)) for h, w in spatial_shapes]
    maps = value.split([h * w for h, w in sizes], dim=1)
    grids = 2 * sampling_locations - 1
    samples = []
    for level, (h, w) in enumerate(sizes):
        level_map = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, h, w)
        level_grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(level_map, level_grid, padding_mode="zeros", align_corners=False))
    stacked = torch.stack(samples, dim=-2).flatten(-2)
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    return (stacked * weights).sum(-1).view(batch, heads * channels, queries).transpose(1, 2).contiguous()
