"""Self-attention within shifted windows of tokens (Swin Transformer, Liu et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_MASKED = -100.0  # what published models add to the logits of pairs that do not attend to each other


class WindowGrid(NamedTuple):
    """How the T = H·W tokens of a map are spread over W windows of N places, for h attention heads.

    The windows cover the map and P places of padding on its right and at its bottom.

    Attributes:
        split: (3, W·h·N) int64. For queries, keys and values in the order window, head, place: their rows among
            (T + 1)·3·h, in the order token, kind, head. Token T stands for all padding.
        merge: ((T + P)·h,) int64. For outputs in the order token, head: their rows among W·h·N; then for padding.
        mask: (W, 1, N, N), to add to the attention logits; None if all pairs of a window attend to each other.
        padded: whether there is padding.
    """

    split: Tensor
    merge: Tensor
    mask: Tensor | None
    padded: bool


def window_grid(height: int, width: int, size: int, shift: int, num_heads: int, like: Tensor) -> WindowGrid:
    """Windows of size × size tokens on a map rolled by `shift` tokens up and to the left.

    Windows on the seam of the rolled map hold tokens from its opposite sides, which do not attend to each other.

    Args:
        like: a tensor of the mask's dtype and device.
    """
    arange = partial(torch.arange, device=like.device)
    rows, columns = (height + size - 1) // size, (width + size - 1) // size
    full_height, full_width = rows * size, columns * size
    head = arange(num_heads)

    # The map's coordinates of each place.
    y = (arange(full_height).view(-1, 1, size, 1) + shift) % full_height
    x = (arange(full_width).view(1, -1, 1, size) + shift) % full_width
    token = (y * width + x).masked_fill((y >= height) | (x >= width), height * width)
    token = token.flatten(2).flatten(0, 1)  # (W, N)
    kind = arange(3)[:, None, None, None]
    split = ((token[:, None] * 3 + kind) * num_heads + head[:, None]).flatten(1)

    # The place of each of the map's coordinates.
    y_rolled = (arange(full_height)[:, None] + (full_height - shift)) % full_height
    x_rolled = (arange(full_width) + (full_width - shift)) % full_width
    window = y_rolled // size * columns + x_rolled // size
    place = y_rolled % size * size + x_rolled % size
    row = (window[..., None] * num_heads + head) * size**2 + place[..., None]  # (full_height, full_width, h)
    merge = torch.cat([row[:height, :width].flatten(), row[:height, width:].flatten(), row[height:].flatten()])

    mask = None
    if shift:
        side = ((y < shift) * 2 + (x < shift)).flatten(2).flatten(0, 1)
        mask = (side[:, :, None] != side[:, None])[:, None].to(like.dtype) * _MASKED
    known = type(height) is type(width) is int  # in a graph for any size there may be padding
    return WindowGrid(split, merge, mask, not known or (full_height, full_width) != (height, width))


class LatestGrids:
    """The two grids of a stage, kept for the next map of the same size. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._latest: tuple[tuple, tuple[WindowGrid, WindowGrid]] | None = None

    def __reduce__(self) -> tuple:
        return type(self), ()

    def __call__(
        self, height: int, width: int, size: int, num_heads: int, like: Tensor
    ) -> tuple[WindowGrid, WindowGrid]:
        """The grid of the unshifted windows and that of the shifted ones; arguments of `window_grid`."""

        def grids() -> tuple[WindowGrid, WindowGrid]:
            return tuple(window_grid(height, width, size, shift, num_heads, like) for shift in (0, size // 2))

        is_compiling = getattr(torch.compiler, "is_compiling", None)  # since PyTorch 2.3
        if type(height) is not int or type(width) is not int or (is_compiling and is_compiling()):
            return grids()  # belongs to the graph that is being made
        key = (height, width, like.dtype, like.device)
        latest = self._latest
        if latest is None or latest[0] != key:
            with torch.inference_mode(False):  # a training step may be the next to need them
                latest = self._latest = (key, grids())
        return latest[1]


class _ToWindows(torch.autograd.Function):
    """Queries, keys and values, each (B, W·h·N, D), from a projection (B, T or T + 1, 3·h·D).

    Autograd's own gradient would add them up row by row where all rows but that of the padding occur once.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, grid: WindowGrid, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.grid, ctx.num_heads, ctx.shape = grid, num_heads, qkv.shape
        return _to_windows(qkv, grid, num_heads)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        batch, length, channels = ctx.shape
        grad = grads[0].new_empty(batch, length, 3, channels // 3)
        tokens = length - ctx.grid.padded
        for kind, of_places in enumerate(grads):
            rows = of_places.index_select(1, ctx.grid.merge).view(batch, -1, channels // 3)
            grad[:, :tokens, kind] = rows[:, :tokens]
            if ctx.grid.padded:
                grad[:, tokens, kind] = rows[:, tokens:].sum(1)
        return grad.flatten(2), None, None


def _to_windows(qkv: Tensor, grid: WindowGrid, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = qkv.reshape(qkv.shape[0], -1, qkv.shape[2] // (3 * num_heads))
    return tuple(rows.index_select(1, split) for split in grid.split)


def relative_position_index(size: int) -> Tensor:
    """For each pair of places in a window, the row of their offset in the table of biases: (N, N) int64."""
    axis = torch.arange(size)
    offset = axis[:, None] - axis + (size - 1)
    return (offset[:, None, :, None] * (2 * size - 1) + offset[None, :, None]).reshape(size**2, size**2)


def keep_input(function: Callable[[Tensor], Tensor], x: Tensor, draws: bool = False) -> Tensor:
    """function(x), where `function` is something cheap and then a linear layer; only x is kept for the backward pass.

    The backward pass repeats what is cheap. It leaves out the linear layer, as nothing needs its output.

    Args:
        draws: whether `function` takes random numbers.
    """
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=draws)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position."""

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        proj_drop: float,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, norm: nn.Module, grid: WindowGrid) -> Tensor:
        """Attention of norm(x), for x (B, T, dim), to the same shape.

        Padding is zero after the norm, so the bias of the projection makes its keys and values.
        """
        qkv = keep_input(partial(self._project, norm=norm, padded=grid.padded), x)
        if qkv.requires_grad:
            query, key, value = _ToWindows.apply(qkv, grid, self.num_heads)
        else:
            query, key, value = _to_windows(qkv, grid, self.num_heads)
        out = self._attend(query, key, value, self._bias(grid.mask))
        rows = x.shape[1] * self.num_heads
        out = out.reshape(*query.shape).index_select(1, grid.merge[:rows])
        return self.proj_drop(self.proj(out.view(x.shape)))

    def _project(self, x: Tensor, norm: nn.Module, padded: bool) -> Tensor:
        x = norm(x)
        return self.qkv(F.pad(x, (0, 0, 0, 1)) if padded else x)

    def _bias(self, mask: Tensor | None) -> Tensor:
        """What is added to the logits: (h, N, N), or (W·h, N, N) where there is a mask."""
        index = self.relative_position_index
        bias = self.relative_position_bias_table.index_select(0, index.flatten())
        bias = bias.t().reshape(-1, *index.shape)
        return bias if mask is None else (bias + mask).flatten(0, 1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attention of (B, W·h·N, D), in the same order; any shape with these elements."""
        groups, places, _ = bias.shape
        dropout = self.attn_drop if self.training else 0.0
        query, key, value = (x.view(-1, places, x.shape[-1]) for x in (query, key, value))
        if query.device.type == "cpu" and bias.requires_grad:
            # The fused kernel has no gradient for a bias here, and PyTorch's fallback takes twice as long as this.
            none = query.new_zeros(1, 1, 1)
            logits = torch.baddbmm(none, query, key.transpose(1, 2), beta=0, alpha=self.scale)
            weights = logits.view(-1, groups, places, places).add_(bias).softmax(-1).view(logits.shape)
            return F.dropout(weights, dropout) @ value
        query, key, value = (x.view(-1, groups, *x.shape[1:]) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, bias[None], dropout, scale=self.scale)
