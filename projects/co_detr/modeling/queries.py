"""Positive queries: decoder queries at the boxes that an auxiliary head found objects in (arXiv 2211.12860, section
3.3)."""

from typing import NamedTuple

import torch
from detrex.layers import box_xyxy_to_cxcywh
from torch import Tensor

from ..heads import Candidates
from ..ops import BACKGROUND


class PositiveQueries(NamedTuple):
    """Q queries of B images.

    Attributes:
        boxes: (B, Q, 4), cxcywh in [0, 1] of the image.
        assigned: (B, Q) int64, the object that each is of; `ops.BACKGROUND` or `ops.IGNORED`, as in `Candidates`.
    """

    boxes: Tensor
    assigned: Tensor


@torch.no_grad()
def draw_queries(candidates: Candidates, extent: Tensor, most: int, least: int) -> PositiveQueries:
    """The positives of each image, at random if there are more than `most`. Images with fewer than another, or than
    `least`, are filled up with negatives, at random too, and with what is ignored where even these do not suffice.

    Args:
        extent: (B, 2), width and height of each image in pixels.
    """
    boxes, assigned = candidates
    longest = int((assigned >= 0).sum(1).clamp(max=most).amax())
    number = min(max(longest, least), assigned.shape[1])
    # Any positive comes before any negative, and among equals the lot decides.
    order = torch.rand(assigned.shape, device=assigned.device) + 2.0 * (assigned >= 0) + (assigned == BACKGROUND)
    sampled = order.topk(number, dim=1).indices
    rows = sampled[..., None].expand(-1, -1, 4)
    chosen = boxes[sampled] if boxes.dim() == 2 else boxes.gather(1, rows)
    centered = box_xyxy_to_cxcywh(chosen.float()) / extent.repeat(1, 2)[:, None]
    return PositiveQueries(centered.clamp(0, 1), assigned.gather(1, sampled))
