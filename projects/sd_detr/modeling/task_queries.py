"""Task-aware queries: salient points in each query's region give content and position of the branches."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detrex.layers import MLP, get_sine_pos_embed
from torch import Tensor, nn

REGION_GRID = 3  # a region is sampled at 3 x 3 positions
REGION_REDUCTION = 8  # region features have 1 / 8 of the channels
FIRST_SIZE = 0.2  # initial size of a region, relative to the image


class Queries(NamedTuple):
    """Initial queries of T branches: N queries of B images, M points each."""

    content: Tensor  # (T, N, B, D)
    position: Tensor  # (T, N, B, D)
    points: Tensor  # (T, N, B, M, 2), x and y in [0, 1]


def valid_size(mask: Tensor) -> Tensor:
    """Return (B, 2) columns and rows of each image, at least 1, from a padding mask (B, H, W), true in padding."""
    valid = ~mask
    return torch.stack((valid[:, 0].sum(-1), valid[:, :, 0].sum(-1)), dim=-1).clamp(min=1)


def sample(maps: Tensor, points: Tensor, size: Tensor) -> Tensor:
    """Sample bilinearly in float32, from the cells of the image only: padding has no influence.

    Args:
        maps: (B, C, H, W).
        points: (B, P, 2), x and y in [0, 1] of the image without padding.
        size: (B, 2) columns and rows of the image, see `valid_size`.

    Returns:
        (B, P, C).
    """
    size = size[:, None].float()
    cells = torch.minimum((points.float() * size).clamp(min=0.5), size - 0.5)
    height, width = maps.shape[-2:]
    grid = 2 * cells / cells.new_tensor([width, height]) - 1
    return F.grid_sample(maps.float(), grid[:, :, None], align_corners=False)[..., 0].transpose(1, 2)


class TaskQueries(nn.Module):
    """Predict M salient points per task in each query's region, and compute the branches' queries from them.

    The region lies around the query's reference point; its width and height come from the query's embedding. A
    perceptron gets the region's features at `REGION_GRID` x `REGION_GRID` positions and the embedding, and predicts the
    points of all tasks. Point m gives the m-th part of the channels of the branch's content. The mean of the points'
    sinusoids is its position. With all points at the reference point, this is Conditional DETR's position.

    Args:
        embed_dim: D, a multiple of `num_points` and of `REGION_REDUCTION`.
        num_tasks: T.
        num_points: M.

    Raises:
        ValueError: `embed_dim` is not a multiple of both.
    """

    def __init__(self, embed_dim: int, num_tasks: int, num_points: int):
        super().__init__()
        if num_points < 1 or embed_dim % num_points or embed_dim % REGION_REDUCTION:
            raise ValueError(
                f"embed_dim={embed_dim}, num_points={num_points}: embed_dim must be a multiple of num_points "
                f"and of {REGION_REDUCTION}"
            )
        self.embed_dim, self.num_tasks, self.num_points = embed_dim, num_tasks, num_points
        reduced = embed_dim // REGION_REDUCTION
        self.region_size = nn.Linear(embed_dim, 2)
        self.region_proj = nn.Linear(embed_dim, reduced)
        self.point_head = MLP(REGION_GRID**2 * reduced + embed_dim, embed_dim, num_tasks * num_points * 2, 2)
        self.content_proj = nn.ModuleList(nn.Linear(embed_dim, embed_dim) for _ in range(num_tasks))
        centers = (torch.arange(REGION_GRID) + 0.5) / REGION_GRID * 2 - 1
        self.register_buffer("region_grid", torch.cartesian_prod(centers, centers), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Give all regions the same initial size, and all tasks the same ring of points halfway to the border."""
        nn.init.zeros_(self.region_size.weight)
        self.region_size.bias.fill_(math.log(FIRST_SIZE / (1 - FIRST_SIZE)))
        turn = 2 * math.pi * torch.arange(self.num_points) / self.num_points
        ring = 0.5 * torch.stack((turn.cos(), turn.sin()), dim=-1)
        last = self.point_head.layers[-1]
        nn.init.zeros_(last.weight)
        last.bias.copy_(ring.atanh().flatten().repeat(self.num_tasks))

    def forward(self, memory: Tensor, query_pos: Tensor, reference: Tensor, mask: Tensor) -> Queries:
        """Compute the initial queries of all branches.

        Args:
            memory: (S, B, D), the encoder's tokens, row by row.
            query_pos: (N, B, D), the queries' embeddings.
            reference: (N, B, 2), x and y in [0, 1].
            mask: (B, H, W) bool, true in padding; S = H · W.
        """
        size = valid_size(mask)
        embed, center = query_pos.transpose(0, 1), reference.transpose(0, 1)[:, :, None]
        reach = self.region_size(embed).sigmoid()[:, :, None] / 2
        points = self._points(memory, embed, center, reach, size, mask)
        content = self._content(memory, points, size, mask)
        # detrex's function needs three dimensions. It puts y first, as the keys' embeddings do.
        sinusoids = get_sine_pos_embed(points.flatten(1, 3), self.embed_dim // 2)
        position = sinusoids.unflatten(1, points.shape[1:4]).mean(-2)
        return Queries(*(x.permute(2, 1, 0, *range(3, x.dim())) for x in (content, position, points)))

    def _points(
        self, memory: Tensor, embed: Tensor, center: Tensor, reach: Tensor, size: Tensor, mask: Tensor
    ) -> Tensor:
        """Predict the salient points, (B, N, T, M, 2)."""
        positions = (center + reach * self.region_grid).flatten(1, 2)
        region_features = sample(as_map(self.region_proj(memory), mask), positions, size)
        region_features = region_features.unflatten(1, (embed.shape[1], -1)).flatten(-2)
        offsets = self.point_head(torch.cat((region_features, embed), dim=-1)).tanh()
        points = center + reach * offsets.unflatten(-1, (-1, 2))
        return points.clamp(0, 1).unflatten(2, (self.num_tasks, self.num_points))

    def _content(self, memory: Tensor, points: Tensor, size: Tensor, mask: Tensor) -> Tensor:
        """Compute the content of the branches' queries, (B, N, T, D)."""
        batch, queries, tasks, parts, _ = points.shape
        maps = as_map(memory, mask).unflatten(1, (parts, -1)).flatten(0, 1)
        at = points.permute(0, 3, 1, 2, 4).reshape(batch * parts, queries * tasks, 2)
        features = sample(maps, at, size.repeat_interleave(parts, dim=0))
        features = features.view(batch, parts, queries, tasks, -1).permute(0, 2, 3, 1, 4).flatten(-2)
        return torch.stack([proj(x) for proj, x in zip(self.content_proj, features.unbind(2), strict=True)], dim=2)


def as_map(tokens: Tensor, mask: Tensor) -> Tensor:
    """Reshape tokens (H · W, B, C) to a map (B, C, H, W) of the height and width of `mask`."""
    return tokens.permute(1, 2, 0).unflatten(-1, mask.shape[-2:])
