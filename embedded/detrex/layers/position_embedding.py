"""Position embeddings of feature maps and of points."""

import math

import torch
from torch import Tensor, nn


def _sinusoids(angle: Tensor, num_feats: int, temperature: float) -> Tensor:
    """Embed angles (…) to (…, num_feats): sine and cosine alternate, pair k has frequency temperature^(-2k/num_feats).

    "Attention is all you need", section 3.5. The precision is at least float32: half precision cannot represent the
    phase of large angles.
    """
    precise = angle.to(torch.promote_types(angle.dtype, torch.float32))
    pair = torch.arange((num_feats + 1) // 2, device=angle.device, dtype=precise.dtype)
    phase = precise[..., None] / temperature ** (2 * pair / num_feats)
    return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-2)[..., :num_feats]


def get_sine_pos_embed(
    pos_tensor: Tensor, num_pos_feats: int = 128, temperature: int = 10000, exchange_xy: bool = True
) -> Tensor:
    """Embed coordinates in [0, 1] by sinusoids: (…, n) to (…, n · num_pos_feats). 1 is a full turn.

    With `exchange_xy` the order is y, x, w, h as in `PositionEmbeddingSine`; else it is x, y, w, h.
    """
    embed = _sinusoids(pos_tensor * 2 * math.pi, num_pos_feats, temperature)
    if exchange_xy and pos_tensor.shape[-1] > 1:
        embed = torch.cat((embed[..., 1:2, :], embed[..., 0:1, :], embed[..., 2:, :]), dim=-2)
    return embed.flatten(-2).to(pos_tensor.dtype)


class PositionEmbeddingSine(nn.Module):
    """Sinusoids of row and column of each position of a padded feature map.

    Only valid positions count, so that the embedding of an image does not depend on its padding.

    Args:
        num_pos_feats: channels for each of the two axes, half the width of the model.
        temperature: ratio between the longest and the shortest wavelength.
        scale: angle of the last valid position after normalisation, in radians.
        eps: keeps the division of the normalisation finite.
        offset: added to the count, which starts at 1, before normalisation; -0.5 gives the centres of the positions.
        normalize: divide the count by the number of valid rows (columns), and multiply by `scale`.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: int = 10000,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
        offset: float = 0.0,
        normalize: bool = False,
    ):
        super().__init__()
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.scale = scale
        self.eps = eps
        self.offset = offset
        self.normalize = normalize

    def forward(self, mask: Tensor, **kwargs) -> Tensor:
        """Embed a `mask` (B, H, W), true (or 1) in padding: return float32 (B, 2 · num_pos_feats, H, W), rows first."""
        valid = ~mask.bool()
        axes = []
        for dim in (1, 2):
            count = valid.cumsum(dim, dtype=torch.float32)
            if self.normalize:
                total = count.narrow(dim, count.shape[dim] - 1, 1)
                count = (count + self.offset) / (total + self.eps) * self.scale
            axes.append(_sinusoids(count, self.num_pos_feats, self.temperature))
        return torch.cat(axes, dim=-1).permute(0, 3, 1, 2)


class PositionEmbeddingLearned(nn.Module):
    """A learned vector for each row and for each column.

    Args:
        num_pos_feats: channels for each of the two axes, half the width of the model.
        row_num_embed, col_num_embed: height and width of the largest feature map.
    """

    def __init__(self, num_pos_feats: int = 256, row_num_embed: int = 50, col_num_embed: int = 50):
        super().__init__()
        self.row_embed = nn.Embedding(row_num_embed, num_pos_feats)
        self.col_embed = nn.Embedding(col_num_embed, num_pos_feats)
        self.num_pos_feats = num_pos_feats
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise uniformly in [0, 1)."""
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor) -> Tensor:
        """Return (B, 2 · num_pos_feats, H, W), columns first; only the shape of `mask` (B, H, W) is used.

        Raises:
            ValueError: the map is larger than the embedding.
        """
        batch, height, width = mask.shape
        rows, cols = self.row_embed.num_embeddings, self.col_embed.num_embeddings
        if height > rows or width > cols:
            raise ValueError(
                f"PositionEmbeddingLearned holds {rows} rows and {cols} columns, the feature map has {height} and "
                f"{width}; raise row_num_embed and col_num_embed, or shrink the image"
            )
        by_col = self.col_embed.weight[:width].expand(height, -1, -1)
        by_row = self.row_embed.weight[:height, None].expand(-1, width, -1)
        return torch.cat((by_col, by_row), dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)
