"""Positive queries: decoder queries from the positive boxes of an auxiliary head (arXiv 2211.12860, section 3.3)."""

from typing import NamedTuple

import torch
from detrex.layers import box_xyxy_to_cxcywh, get_sine_pos_embed
from torch import Tensor, nn

from ..heads import Candidates
from ..ops import BACKGROUND


class PositiveQueries(NamedTuple):
    """Q queries of B images.

    Attributes:
        boxes: (B, Q, 4), cxcywh in [0, 1] of the image.
        assigned: (B, Q) int64, index of the assigned ground truth, `ops.BACKGROUND` or `ops.IGNORED`.
        sampled: (B, Q) int64, position of each query among the head's candidates.
    """

    boxes: Tensor
    assigned: Tensor
    sampled: Tensor


@torch.no_grad()
def draw_queries(candidates: Candidates, extent: Tensor, most: int, least: int) -> PositiveQueries:
    """Sample the positives of each image, and fill up with negatives.

    Every image gets as many queries as the image with most positives, at most `most` and at least `least`. Positives
    come first, then negatives, then ignored boxes; within each kind the choice is random.

    Args:
        extent: (B, 2), width and height of each image in pixels.
    """
    boxes, assigned = candidates.boxes, candidates.assigned
    longest = int((assigned >= 0).sum(1).clamp(max=most).amax())
    number = min(max(longest, least), assigned.shape[1])
    # Positives first, then negatives, then ignored boxes; random within each kind.
    order = torch.rand(assigned.shape, device=assigned.device) + 2.0 * (assigned >= 0) + (assigned == BACKGROUND)
    sampled = order.topk(number, dim=1).indices
    rows = sampled[..., None].expand(-1, -1, 4)
    chosen = boxes[sampled] if boxes.dim() == 2 else boxes.gather(1, rows)
    centered = box_xyxy_to_cxcywh(chosen.float()) / extent.repeat(1, 2)[:, None]
    return PositiveQueries(centered.clamp(0, 1), assigned.gather(1, sampled), sampled)


class ContentFromBox(nn.Sequential):
    """Content (B, Q, D) of positive queries from their boxes: a projection of the sine embedding, and a norm.

    For decoders that compute the position embeddings from the boxes themselves, such as DINO's.
    """

    def __init__(self, embed_dim: int):
        super().__init__(nn.Linear(2 * embed_dim, embed_dim), nn.LayerNorm(embed_dim))
        self.embed_dim = embed_dim

    def forward(self, queries: PositiveQueries, candidates: Candidates) -> tuple[Tensor, None]:
        """Return the content (B, Q, D), and None for the position."""
        return super().forward(get_sine_pos_embed(queries.boxes, self.embed_dim // 2)), None


class ContentAndPosition(nn.Module):
    """Content and position of positive queries for decoders that take both, such as Deformable DETR's.

    Both are halves of one projection of the boxes' sine embedding. The content also gets the features of the candidate.
    The position also gets one learned number, the same for all channels: Sense-X's published weights have it.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.embed_dim = embed_dim
        self.box = nn.Sequential(nn.Linear(2 * embed_dim, 2 * embed_dim), nn.LayerNorm(2 * embed_dim))
        self.feature = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim))
        self.position_shift = nn.Parameter(torch.zeros(1))

    def forward(self, queries: PositiveQueries, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Return content and position, (B, Q, D) each."""
        embedding = get_sine_pos_embed(queries.boxes, self.embed_dim // 2, exchange_xy=False)
        position, content = self.box(embedding).chunk(2, dim=-1)
        features = candidates.features(queries.sampled)
        return content + self.feature(features.to(content.dtype)), position + self.position_shift
