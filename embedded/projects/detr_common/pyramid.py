"""A feature pyramid as one sequence of tokens, and where those tokens are.

S = Σ H_l·W_l tokens, level by level, row by row. "Image coordinates" span [0, 1] over the image itself, "padded
coordinates" over the padded map; a level's valid ratio (w, h) takes the one to the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, int]]  # height, width of each level, as Python integers


@dataclass(frozen=True)
class TokenPyramid:
    """What the layers of a deformable transformer need to know of the L feature maps.

    Attributes:
        features: (B, S, D).
        positions: (B, S, D), position and level embeddings.
        padding: (B, S) bool, true for tokens outside the image.
        shapes: height and width of each level.
        valid_ratios: (B, L, 2), (w, h) shares of each padded map that are image.
    """

    features: Tensor
    positions: Tensor
    padding: Tensor
    shapes: Shapes
    valid_ratios: Tensor

    @cached_property
    def attention_inputs(self) -> dict:
        """Keyword arguments by which `MultiScaleDeformableAttention` finds the levels in the sequence."""
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
    """Join feature maps (B, D, H_l, W_l), padding masks (B, H_l, W_l), position embeddings shaped like the maps and
    one embedding (L, D) per level."""
    levels = zip(positions, level_embeds, strict=True)
    return TokenPyramid(
        features=torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1),
        positions=torch.cat([x.flatten(2).transpose(1, 2) + level for x, level in levels], dim=1).to(maps[0].dtype),
        padding=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        shapes=[tuple(mask.shape[-2:]) for mask in masks],
        valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], dim=1),
    )


def _valid_extent(mask: Tensor) -> Tensor:
    """(B, 2) valid columns and rows of (B, H, W) padding masks."""
    valid = ~mask
    return torch.stack([valid[:, 0].sum(1), valid[:, :, 0].sum(1)], dim=-1).float()


def valid_ratio(mask: Tensor) -> Tensor:
    """(B, 2) shares (w, h) of a map that are not padding, from its mask (B, H, W), true in padding."""
    return _valid_extent(mask) / _valid_extent(torch.zeros_like(mask[:1]))


def _grid(height: int, width: int, device: torch.device) -> Tensor:
    """(H·W, 2) cell centres (x, y) in cells."""
    rows, columns = (torch.arange(extent, dtype=torch.float32, device=device) for extent in (height, width))
    y, x = torch.meshgrid(rows + 0.5, columns + 0.5, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


def token_centers(shapes: Shapes, extents: Tensor) -> Tensor:
    """(B, S, 2) centres (x, y) in image coordinates; `extents` (B, L, 2) holds each level's (width, height) in cells
    of the image proper. Beyond 1 in padding."""
    per_level = zip(shapes, extents.unbind(1), strict=True)
    return torch.cat([_grid(h, w, extents.device) / extent[:, None] for (h, w), extent in per_level], dim=1)


def reference_points(shapes: Shapes, valid_ratios: Tensor) -> Tensor:
    """(B, S, L, 2): where on each padded level a token's own position lies, (x, y) in padded coordinates."""
    levels = zip(valid_ratios.unbind(1), shapes, strict=True)
    # Not a tensor of sizes: an exported graph for images of any size would have one image's in it.
    extents = torch.stack([torch.stack([x[:, 0] * w, x[:, 1] * h], dim=-1) for x, (h, w) in levels], dim=1)
    return token_centers(shapes, extents)[:, :, None] * valid_ratios[:, None]


def encoder_proposals(padding: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    """One box per token (Deformable DETR, arXiv 2010.04159, appendix A.4): at its centre, 0.05·2^level wide and high.

    Args:
        padding: (B, S) bool.

    Returns:
        The logits of the boxes (B, S, 4), cxcywh in image coordinates; and which tokens are usable (B, S, 1): not
        padding, and not so close to an edge that the logit of a coordinate explodes. Elsewhere the logit is inf.
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
    """(B, S, D) at (B, K) positions: (B, K, D)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def top_tokens(scores: Tensor, count: int) -> Tensor:
    """(B, count) positions of the highest of (B, S) scores.

    Raises:
        ValueError: there are fewer tokens than that.
    """
    if scores.shape[1] < count:
        raise ValueError(
            f"the feature maps of this batch have {scores.shape[1]} positions, fewer than the {count} queries that "
            "two-stage selection takes from them: use larger images or a smaller num_queries"
        )
    return scores.topk(count, dim=1).indices
