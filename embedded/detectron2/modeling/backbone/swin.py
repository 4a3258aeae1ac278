"""Swin Transformer (Liu et al., ICCV 2021) under detectron2's names: feature maps `p0` to `p3`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbone import Backbone
from .window_attention import LatestGrids, WindowAttention, WindowGrid, keep_input

__all__ = ["SwinTransformer"]

NormLayer = Callable[[int], nn.Module]


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


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, drop: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """The layers on norm(x), for x (…, dim), to the same shape."""
        hidden = keep_input(lambda x: self.fc1(norm(x)), x)
        return self.drop(keep_input(lambda x: self.fc2(self.drop(F.gelu(x))), hidden, draws=self.drop.p > 0))


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
        # By sizes, as the ONNX exporter takes those that `unflatten` finds out for constants.
        x = x.reshape(x.shape[0], (height + 1) // 2, 2, (width + 1) // 2, 2, x.shape[3])
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
        self._grids = LatestGrids()

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
