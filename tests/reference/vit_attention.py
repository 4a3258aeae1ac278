"""A ViT's attention, the plain way: windows filled up with zeros first, every score and every position in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reference_relative_attention(query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """MViTv2 (Li et al., 2022), equations 4 and 5, shapes as in `relative_attention` of the engine."""
    height, width = bias_h.shape[-1], bias_w.shape[-1]
    of_rows = bias_h.repeat_interleave(width, dim=-1)
    of_columns = bias_w.repeat(1, 1, 1, height)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + of_rows + of_columns
    return scores.softmax(dim=-1) @ value


def reference_attention(attention: nn.Module, x: Tensor) -> Tensor:
    """(B, H, W, C) through `attention`, whose parameters are `qkv`, `proj`, and perhaps `rel_pos_h` and `rel_pos_w`."""
    batch, height, width, channels = x.shape
    side = attention.window_size
    window = (side, side) if side else (height, width)
    x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    output = torch.empty_like(x)
    for top in range(0, x.shape[1], window[0]):
        for left in range(0, x.shape[2], window[1]):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            tokens = attention.qkv(x[:, rows, columns].flatten(1, 2))
            query, key, value = (
                part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in tokens.chunk(3, dim=-1)
            )
            if hasattr(attention, "rel_pos_h"):
                bias_h, bias_w = _biases(query, attention.rel_pos_h, attention.rel_pos_w, window)
                attended = reference_relative_attention(query, key, value, bias_h, bias_w)
            else:
                attended = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1) @ value
            attended = attended.transpose(1, 2).reshape(batch, *window, channels)
            output[:, rows, columns] = attention.proj(attended)
    return output[:, :height, :width]


def _biases(query: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B, heads, H·W, H) and (B, heads, H·W, W): the query times the embedding of each offset."""
    height, width = size
    tables = []
    for rel_pos, extent in ((rel_pos_h, height), (rel_pos_w, width)):
        if len(rel_pos) != 2 * extent - 1:
            rel_pos = F.interpolate(rel_pos.T[None], size=2 * extent - 1, mode="linear")[0].T
        rows = [torch.stack([rel_pos[i - j + extent - 1] for j in range(extent)]) for i in range(extent)]
        tables.append(torch.stack(rows))
    of_rows, of_columns = tables[0].repeat_interleave(width, 0), tables[1].repeat(height, 1, 1)
    return tuple((query[..., None, :] * table).sum(-1) for table in (of_rows, of_columns))
