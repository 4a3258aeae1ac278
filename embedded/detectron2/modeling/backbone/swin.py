"""Swin Transformer (Liu et al., ICCV 2021) under detectron2's names: feature maps `p0` to `p3`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbone import Backbone

NormLayer = Callable[[int], nn.Module]

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


class _LatestGrids:
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


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], drop_rate: float) -> Tensor:
    """x + branch(x), with stochastic depth (Huang et al., ECCV 2016) for the samples of x (B, …).

    Each sample does without the branch with probability `drop_rate`, and is not computed in it; for the others the
    branch is divided by 1 - `drop_rate`. If all do without, one is computed and multiplied by zero, so that each
    parameter has a gradient.
    """
    if not drop_rate:
        return x + branch(x)
    kept = (torch.rand(len(x), device="cpu") >= drop_rate).nonzero()[:, 0]  # on the CPU: its number is needed here
    weight = 1 / (1 - drop_rate)
    if len(kept) == len(x):
        return torch.add(x, branch(x), alpha=weight)
    if not len(kept):
        kept, weight = kept.new_zeros(1), 0.0
    kept = kept.to(x.device, non_blocking=True)
    return x.index_add(0, kept, branch(x.index_select(0, kept)).to(x.dtype), alpha=weight)


def _keep_input(function: Callable[[Tensor], Tensor], x: Tensor, draws: bool = False) -> Tensor:
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
        qkv = _keep_input(partial(self._project, norm=norm, padded=grid.padded), x)
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


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, drop: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """The layers on norm(x), for x (…, dim), to the same shape."""
        hidden = _keep_input(lambda x: self.fc1(norm(x)), x)
        return self.drop(_keep_input(lambda x: self.fc2(self.drop(F.gelu(x))), hidden, draws=self.drop.p > 0))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each after a norm and beside a shortcut."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
        norm_layer: NormLayer,
    ):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """(B, T, dim) to the same shape."""
        drop_rate = self.drop_path if self.training else 0.0
        x = add_branch(x, partial(self.attn, norm=self.norm1, grid=grid), drop_rate)
        return add_branch(x, partial(self.mlp, norm=self.norm2), drop_rate)


class PatchMerging(nn.Module):
    """Halve a map: the channels of 2 × 2 tokens become twice the channels of one."""

    def __init__(self, dim: int, norm_layer: NormLayer):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, ⌈H/2⌉, ⌈W/2⌉, 2·dim); an odd row or column has zeros beside it."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, ⌈H/2⌉, 2, ⌈W/2⌉, 2, dim)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # upper left, lower left, upper right, lower right
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Blocks on maps of one stride, whose windows are shifted in every second one; then the merging, if any."""

    def __init__(
        self, blocks: Sequence[SwinBlock], window_size: int, downsample: PatchMerging | None, use_checkpoint: bool
    ):
        super().__init__()
        self.window_size = window_size
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self._grids = _LatestGrids()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape. The merging is the caller's to call."""
        attention = self.blocks[0].attn
        grids = self._grids(
            *x.shape[1:3], self.window_size, attention.num_heads, attention.relative_position_bias_table
        )
        tokens = x.flatten(1, 2)
        for i, block in enumerate(self.blocks):
            if self.use_checkpoint and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, grids[i % 2], use_reentrant=False)
            else:
                tokens = block(tokens, grids[i % 2])
        return tokens.view(x.shape)


class PatchEmbed(nn.Module):
    """One token for each patch of an image."""

    def __init__(self, patch_size: tuple[int, int], in_channels: int, dim: int, norm_layer: NormLayer | None):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = None if norm_layer is None else norm_layer(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, ⌈H/patch height⌉, ⌈W/patch width⌉, dim); zeros complete the last patches."""
        bottom, right = (
            (size - length % size) % size for length, size in zip(x.shape[2:], self.patch_size, strict=True)
        )
        x = F.pad(x, (0, right, 0, bottom)).contiguous(memory_format=torch.channels_last)
        x = self.proj(x).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


class SwinTransformer(Backbone):
    """Swin Transformer, whose outputs `p0`, `p1`, `p2`, `p3` have strides of 4, 8, 16 and 32 pixels.

    | model | embed_dim | depths | num_heads | drop_path_rate |
    | --- | --- | --- | --- | --- |
    | Swin-T | 96 | 2, 2, 6, 2 | 3, 6, 12, 24 | 0.2 |
    | Swin-S | 96 | 2, 2, 18, 2 | 3, 6, 12, 24 | 0.2 |
    | Swin-B | 128 | 2, 2, 18, 2 | 4, 8, 16, 32 | 0.3 |
    | Swin-L | 192 | 2, 2, 18, 2 | 6, 12, 24, 48 | 0.3 |

    Args:
        pretrain_img_size: height and width in pixels, or one number for both, of the images that absolute positions
            are learned from.
        patch_size: height and width of a token in pixels, or one number for both.
        in_chans: channels of the images.
        embed_dim: channels of the first stage. Each other stage has twice those of the stage before.
        depths, num_heads: blocks, and attention heads of each block, by stage.
        window_size: height and width of a window in tokens: 7 or 12 in published models.
        mlp_ratio: hidden channels of an MLP, divided by its channels.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: factor of the attention logits; by default one over the square root of a head's channels.
        drop_rate, attn_drop_rate: dropout, and dropout of attention weights.
        drop_path_rate: stochastic depth of the last block. The first has none; between them it grows linearly.
        norm_layer: makes the norm for a number of channels.
        ape: add absolute positions, resized to the map, to the tokens.
        patch_norm: norm the tokens before the first stage.
        out_indices: the stages to return, from 0. Parameters that none of them depends on take no gradients.
        frozen_stages: stop training the patch embedding (0 and up), the absolute positions (1 and up) and the first
            `frozen_stages - 1` stages (2 and up); -1 trains everything. Frozen parts drop nothing.
        use_checkpoint: keep only the inputs of the blocks for the backward pass, which repeats each block.

    Raises:
        ValueError: the arguments contradict each other, or a name or number is out of range.
    """

    def __init__(
        self,
        pretrain_img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        norm_layer: NormLayer = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        num_stages = len(depths)
        widths = [embed_dim * 2**i for i in range(num_stages)]
        _check(widths, depths, num_heads, window_size, drop_path_rate, out_indices, frozen_stages)
        patch_height, patch_width = _pair(patch_size)
        self.num_layers = num_stages
        self.num_features = widths
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages

        norm = norm_layer if patch_norm else None
        self.patch_embed = PatchEmbed((patch_height, patch_width), in_chans, embed_dim, norm)
        self.absolute_pos_embed = None
        if ape:
            height, width = _pair(pretrain_img_size)
            positions = torch.zeros(1, embed_dim, height // patch_height, width // patch_width)
            self.absolute_pos_embed = nn.Parameter(positions)
        self.pos_drop = nn.Dropout(drop_rate)

        last = max(sum(depths) - 1, 1)
        drop_paths = iter(drop_path_rate * i / last for i in range(sum(depths)))
        self.layers = nn.ModuleList()
        for i, (width, depth, heads) in enumerate(zip(widths, depths, num_heads, strict=True)):
            blocks = [
                SwinBlock(
                    width,
                    heads,
                    window_size,
                    mlp_ratio,
                    qkv_bias,
                    qk_scale,
                    drop_rate,
                    attn_drop_rate,
                    next(drop_paths),
                    norm_layer,
                )
                for _ in range(depth)
            ]
            downsample = PatchMerging(width, norm_layer) if i + 1 < num_stages else None
            self.layers.append(SwinStage(blocks, window_size, downsample, use_checkpoint))
        for i in out_indices:
            self.add_module(f"norm{i}", norm_layer(widths[i]))
        self._shapes = {f"p{i}": ShapeSpec(channels=widths[i], stride=patch_height * 2**i) for i in out_indices}
        self._initialise()
        self._freeze()

    def _initialise(self) -> None:
        """Weights as in the paper's code: normal, σ = 0.02, cut off at ±2; biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def _frozen_modules(self) -> list[nn.Module]:
        frozen = [self.patch_embed] if self.frozen_stages >= 0 else []
        return [*frozen, self.pos_drop, *self.layers[: self.frozen_stages - 1]] if self.frozen_stages >= 2 else frozen

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.absolute_pos_embed is not None and self.frozen_stages >= 1:
            self.absolute_pos_embed.requires_grad_(False)
        last = max(self.out_indices)
        self.layers[last + 1 :].requires_grad_(False)
        if self.layers[last].downsample is not None:
            self.layers[last].downsample.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> SwinTransformer:
        """Switch to training, where dropout and stochastic depth act, but for what is frozen. Returns self."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, in_chans, H, W) of any size to the maps of `out_indices`, (B, C, ⌈H/stride⌉, ⌈W/stride⌉)."""
        if x.dim() != 4:
            raise ValueError(f"SwinTransformer takes images (B, C, H, W), not a tensor of shape {tuple(x.shape)}")
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            positions = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")
            x = x + positions.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        outputs = {}
        last = max(self.out_indices)
        for i, stage in enumerate(self.layers[: last + 1]):
            x = stage(x)
            if i in self.out_indices:
                outputs[f"p{i}"] = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)
            if i < last:
                x = stage.downsample(x)
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output."""
        return dict(self._shapes)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _check(
    widths: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int,
    drop_path_rate: float,
    out_indices: Sequence[int],
    frozen_stages: int,
) -> None:
    num_stages = len(depths)
    if len(num_heads) != num_stages:
        raise ValueError(f"SwinTransformer: depths has {num_stages} stages, num_heads has {len(num_heads)}")
    for i, (width, heads) in enumerate(zip(widths, num_heads, strict=True)):
        if width % heads:
            raise ValueError(f"SwinTransformer: stage {i} has {width} channels, no multiple of its {heads} heads")
    if not out_indices or not set(out_indices) <= set(range(num_stages)):
        raise ValueError(f"SwinTransformer: out_indices is {list(out_indices)}; choose from 0 to {num_stages - 1}")
    if not -1 <= frozen_stages <= num_stages + 1:
        raise ValueError(f"SwinTransformer: frozen_stages is {frozen_stages}; choose from -1 to {num_stages + 1}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"SwinTransformer: drop_path_rate is {drop_path_rate}; it must be at least 0 and below 1")
    if window_size < 1:
        raise ValueError(f"SwinTransformer: window_size is {window_size}; it must be at least 1")
