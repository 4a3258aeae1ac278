"""Token sequence of a feature pyramid, and the positions of its tokens.

S = Σ H_l·W_l tokens, level by level, row by row. "Image coordinates" are [0, 1] over the image without padding, "padded
coordinates" over the padded map. Image coordinates times the valid ratio (w, h) of a level give padded coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, int]]  # height, width of each level, as Python integers


@dataclass(frozen=True)
class TokenPyramid:
    """Inputs of a deformable transformer from L feature maps.

    Attributes:
        features: (B, S, D).
        positions: (B, S, D), position and level embeddings.
        padding: (B, S) bool, true for tokens outside the image.
        shapes: height and width of each level.
        valid_ratios: (B, L, 2), valid share (w, h) of each padded map.
    """

    features: Tensor
    positions: Tensor
    padding: Tensor
    shapes: Shapes
    valid_ratios: Tensor

    @cached_property
    def attention_inputs(self) -> dict:
        """Keyword arguments of `MultiScaleDeformableAttention`: shapes and start indices of the levels."""
        device = self.features.device
        starts = [0]
        for height, width in self.shapes[:-1]:
            starts.append(starts[-1] + height * width)
        return {
            "spatial_shapes": torch.tensor(self.shapes, device=device),
            "level_start_index": torch.tensor(starts, device=device),
        }


def flatten_pyramid(
    maps: Sequence[Tensor], masks: Sequence[Tensor], positions: Sequence[Tensor], level_embeds: Tensor
) -> TokenPyramid:
    """Flatten a feature pyramid to a `TokenPyramid`.

    Args:
        maps: (B, D, H_l, W_l).
        masks: (B, H_l, W_l) bool, true in padding.
        positions: position embeddings in the shape of the maps.
        level_embeds: (L, D).
    """
    levels = zip(positions, level_embeds, strict=True)
    return TokenPyramid(
        features=torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1),
        positions=torch.cat([x.flatten(2).transpose(1, 2) + level for x, level in levels], dim=1).to(maps[0].dtype),
        padding=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        shapes=[tuple(mask.shape[-2:]) for mask in masks],
        valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], dim=1),
    )


def _valid_extent(mask: Tensor) -> Tensor:
    """Return (B, 2) valid columns and rows of padding masks (B, H, W)."""
    valid = ~mask
    return torch.stack([valid[:, 0].sum(1), valid[:, :, 0].sum(1)], dim=-1).float()


def valid_ratio(mask: Tensor) -> Tensor:
    """Return the valid share (w, h) of a map, (B, 2), from its mask (B, H, W), true in padding."""
    return _valid_extent(mask) / _valid_extent(torch.zeros_like(mask[:1]))


def _grid(height: int, width: int, device: torch.device) -> Tensor:
    """Return cell centres (x, y) in cells, (H·W, 2)."""
    rows, columns = (torch.arange(extent, dtype=torch.float32, device=device) for extent in (height, width))
    y, x = torch.meshgrid(rows + 0.5, columns + 0.5, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


def token_centers(shapes: Shapes, extents: Tensor) -> Tensor:
    """Return the token centres (x, y) in image coordinates, (B, S, 2); above 1 in padding.

    Args:
        extents: (B, L, 2), width and height in cells of the image on each level, without padding.
    """
    per_level = zip(shapes, extents.unbind(1), strict=True)
    return torch.cat([_grid(h, w, extents.device) / extent[:, None] for (h, w), extent in per_level], dim=1)


def reference_points(shapes: Shapes, valid_ratios: Tensor) -> Tensor:
    """Return the position (x, y) of each token on each level in padded coordinates, (B, S, L, 2)."""
    levels = zip(valid_ratios.unbind(1), shapes, strict=True)
    # A tensor made from sizes would be a constant in an exported graph: that graph must work for images of any size.
    extents = torch.stack([torch.stack([x[:, 0] * w, x[:, 1] * h], dim=-1) for x, (h, w) in levels], dim=1)
    return token_centers(shapes, extents)[:, :, None] * valid_ratios[:, None]


def encoder_proposals(padding: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    """Propose a box at each token, 0.05·2^level wide and high (Deformable DETR, arXiv 2010.04159, appendix A.4).

    Args:
        padding: (B, S) bool.

    Returns:
        Logits of the boxes (B, S, 4), cxcywh in image coordinates, and a mask of usable tokens (B, S, 1). A token is
        unusable in padding, and where a coordinate is outside (0.01, 0.99). Its logits are inf.
    """
    masks = [
        mask.unflatten(1, size)
        for mask, size in zip(padding.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
    ]
    centers = token_centers(shapes, torch.stack([_valid_extent(mask) for mask in masks], dim=1))
    sides = torch.cat([centers.new_full((h * w, 2), 0.05 * 2**level) for level, (h, w) in enumerate(shapes)])
    boxes = torch.cat([centers, sides.expand_as(centers)], dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True) & ~padding[..., None]
    return boxes.logit().masked_fill(~usable, torch.inf), usable


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Select tokens (B, S, D) at positions (B, K): return (B, K, D)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def top_tokens(scores: Tensor, count: int) -> Tensor:
    """Return the positions (B, count) of the highest scores (B, S).

    Raises:
        ValueError: there are fewer than `count` tokens.
    """
    if scores.shape[1] < count:
        raise ValueError(
            f"the feature maps of this batch have {scores.shape[1]} positions, fewer than the {count} queries that "
            "two-stage selection takes from them: use larger images or a smaller num_queries"
        )
    return scores.topk(count, dim=1).indices
