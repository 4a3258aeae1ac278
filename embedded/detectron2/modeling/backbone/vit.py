"""Plain Vision Transformers as backbones (ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbone import Backbone
from .relative_attention import relative_attention
from .simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ["SimpleFeaturePyramid", "ViT", "get_vit_lr_decay_rate"]

Size = tuple[int, int]  # height, width
Norm = Callable[[int], nn.Module]


def get_vit_lr_decay_rate(name: str, lr_decay_rate: float = 1.0, num_layers: int = 12) -> float:
    """Factor on the learning rate that falls from the heads to the image: layer-wise decay (BEiT, arXiv 2106.08254).

    For `lr_factor_func` of `get_default_optimizer_params`:
    `functools.partial(get_vit_lr_decay_rate, lr_decay_rate=0.7, num_layers=12)`.

    Args:
        name: of a parameter of the detector.
        lr_decay_rate: factor from one block to the block before it.
        num_layers: number of blocks of the ViT.

    Returns:
        1 for all that is outside the ViT's blocks and embeddings, `lr_decay_rate` for the last block,
        `lr_decay_rate ** (num_layers + 1)` for the position and patch embeddings.

    Raises:
        ValueError: the name is of a block beyond `num_layers`.
    """
    depth = num_layers + 1
    if name.startswith("backbone"):
        if ".pos_embed" in name or ".patch_embed" in name:
            depth = 0
        elif (match := re.search(r"\.blocks\.(\d+)\.", name)) and ".residual." not in name:
            depth = int(match[1]) + 1
            if depth > num_layers:
                raise ValueError(
                    f"get_vit_lr_decay_rate: {name} is beyond num_layers={num_layers}: give the ViT's depth"
                )
    return lr_decay_rate ** (num_layers + 1 - depth)


def resize_positions(pos_embed: Tensor, has_cls_token: bool, size: Size) -> Tensor:
    """Absolute position embeddings for a map of another size than that of the pretraining.

    Args:
        pos_embed: (1, n² or 1 + n², D), of a square of n × n cells.
        has_cls_token: the first of them is that of a class token, which is dropped.
        size: height and width of the map.

    Returns:
        (1, height, width, D), by bicubic interpolation.
    """
    grid = pos_embed[:, int(has_cls_token) :]
    grid = grid.unflatten(1, (isqrt(grid.shape[1]), -1))
    if _is_known_to_be(size, grid.shape[1:3]):
        return grid
    return F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bicubic").permute(0, 2, 3, 1)


def relative_table(rel_pos: Tensor, size: int) -> Tensor:
    """(size, size, D) embeddings of the offset from cell i to cell j along one axis.

    Args:
        rel_pos: (L, D) for offsets from the most negative to the most positive. If L is not 2·size - 1, it is
            interpolated linearly to that many.
        size: number of cells along the axis.
    """
    offsets = 2 * size - 1
    if not _is_known_to_be((offsets,), rel_pos.shape[:1]):
        rel_pos = F.interpolate(rel_pos.T[None], size=offsets, mode="linear")[0].T
    cells = torch.arange(size, device=rel_pos.device)
    return rel_pos[cells[:, None] - cells + (size - 1)]


def _is_known_to_be(size: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a size is always that one. A size that is traced for export is not an int, and may be any later."""
    return all(isinstance(extent, int) for extent in size) and tuple(size) == tuple(wanted)


def split_windows(x: Tensor, grid: Size, window: Size) -> Tensor:
    """(B, rows·h, columns·w, C) to its windows (B·rows·columns, h·w, C); `grid` is (rows, columns), `window` (h, w)."""
    x = x.reshape(x.shape[0], grid[0], window[0], grid[1], window[1], x.shape[-1])
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def join_windows(windows: Tensor, batch: int, grid: Size, window: Size) -> Tensor:
    """The opposite of `split_windows`: (B·rows·columns, h·w, C) to (B, rows·h, columns·w, C); `batch` is B."""
    x = windows.reshape(batch, *grid, *window, windows.shape[-1])
    return x.transpose(2, 3).reshape(batch, grid[0] * window[0], grid[1] * window[1], windows.shape[-1])


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch of a whole image with probability `rate`, else scale it up
    (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        kept = 1 - self.rate
        scale = x.new_empty((len(x), *[1] * (x.dim() - 1))).bernoulli_(kept)
        return x * (scale / kept if kept else scale)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class PatchEmbed(nn.Module):
    """A convolution that turns each square patch of the image into one vector."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, H / patch_size, W / patch_size, embed_dim), contiguous."""
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


class Attention(nn.Module):
    """Multi-head self-attention within windows, or over the whole map.

    Args:
        dim: width of the tokens.
        num_heads: number of heads, a divisor of `dim`.
        qkv_bias: queries, keys and values have a bias.
        table_size: height and width of the map for whose offsets relative positions are learned; None for no relative
            positions. Maps of other sizes interpolate.
        rel_pos_zero_init: relative positions start at zero.
        window_size: side of the windows in cells; 0 for attention over the whole map.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        table_size: Size | None = None,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.use_rel_pos = table_size is not None
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if table_size is not None:
            self.rel_pos_h, self.rel_pos_w = (
                nn.Parameter(torch.zeros(2 * extent - 1, dim // num_heads)) for extent in table_size
            )
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape. Windows at the edge are filled up with zeros."""
        height, width = x.shape[1:3]
        if not self.window_size:
            return self.proj(self._attend(self.qkv(x), (1, 1), (height, width)))
        side = self.window_size
        rows, columns = (height + side - 1) // side, (width + side - 1) // side
        # Cells that only fill windows up are zero: of them no product is needed, their queries and keys are the bias.
        qkv = F.pad(F.linear(x, self.qkv.weight), (0, 0, 0, columns * side - width, 0, rows * side - height))
        if self.qkv.bias is not None:
            qkv = qkv + self.qkv.bias.to(qkv.dtype)  # under autocast the sum would be float32
        output = self._attend(qkv, (rows, columns), (side, side))
        # By index, as torch.export would bind a slice to whether there is something to cut off.
        output = output.index_select(1, torch.arange(height, device=x.device))
        return self.proj(output.index_select(2, torch.arange(width, device=x.device)))

    def _attend(self, qkv: Tensor, grid: Size, window: Size) -> Tensor:
        """(B, H, W, 3·dim) queries, keys and values to (B, H, W, dim), with attention within each window of a grid."""
        windows = split_windows(qkv, grid, window).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = windows.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        if self.use_rel_pos:
            cells = query.unflatten(2, window)
            bias_h = torch.einsum("bnhwd,hkd->bnhwk", cells, relative_table(self.rel_pos_h, window[0]))
            bias_w = torch.einsum("bnhwd,wkd->bnhwk", cells, relative_table(self.rel_pos_w, window[1]))
            output = relative_attention(query, key, value, bias_h.flatten(2, 3), bias_w.flatten(2, 3))
        else:
            output = F.scaled_dot_product_attention(query, key, value)
        return join_windows(output.transpose(1, 2).flatten(2), qkv.shape[0], grid, window)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, hidden_dim: int, act_layer: Callable[[], nn.Module]):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class ResBottleneckBlock(CNNBlockBase):
    """Convolutions 1×1, 3×3 and 1×1 with norms, added to the input. At the start it is the identity: the last norm's
    weight is zero."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bottleneck_channels: int,
        norm: str | Norm = "LN",
        act_layer: Callable[[], nn.Module] = nn.GELU,
    ):
        super().__init__(in_channels, out_channels, 1)
        widths = (in_channels, bottleneck_channels, bottleneck_channels, out_channels)
        for i, kernel_size in enumerate((1, 3, 1)):
            conv = Conv2d(widths[i], widths[i + 1], kernel_size, padding=kernel_size // 2, bias=False)
            c2_msra_fill(conv)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"norm{i + 1}", get_norm(norm, widths[i + 1]))
            if i < 2:
                self.add_module(f"act{i + 1}", act_layer())
        nn.init.zeros_(self.norm3.weight)
        nn.init.zeros_(self.norm3.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        out = x
        for layer in self.children():
            out = layer(out)
        return x + out


class Block(nn.Module):
    """Attention and a multi-layer perceptron, each after a norm and added to its input; then perhaps convolutions."""

    def __init__(
        self,
        dim: int,
        attention: Attention,
        mlp_ratio: float,
        drop_path: float,
        norm_layer: Norm,
        act_layer: Callable[[], nn.Module],
        use_residual_block: bool,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = attention
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer)
        self.residual = ResBottleneckBlock(dim, dim, dim // 2, "LN", act_layer) if use_residual_block else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        if self.residual is not None:
            x = self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class ViT(Backbone):
    """Vision Transformer (arXiv 2010.11929) as a backbone: one feature map, of the stride of its patches.

    Pixels beyond the last whole patch, at the right and at the bottom, are not seen.

    Args:
        img_size: side of the images in pixels for which relative positions of global blocks are learned; images of
            other sizes interpolate them.
        patch_size: side of a patch in pixels.
        in_chans: channels of the images.
        embed_dim, depth, num_heads: width, number of blocks, heads of each. B: 768, 12, 12; L: 1024, 24, 16; H: 1280,
            32, 16.
        mlp_ratio: hidden width of the perceptrons, as a multiple of `embed_dim`.
        qkv_bias: queries, keys and values have a bias.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        norm_layer: from a width to a norm. MAE's weights are for `eps=1e-6`.
        act_layer: makes the activation of the perceptrons.
        use_abs_pos: add absolute position embeddings to the patches.
        use_rel_pos: add relative position embeddings to the scores of attention.
        rel_pos_zero_init: the latter start at zero.
        window_size: side of the windows in patches; they need not divide the map.
        window_block_indexes: which blocks attend within windows; the others attend to the whole map.
        residual_block_indexes: which blocks end in a residual block of convolutions.
        use_act_checkpoint: keep only the input of each block for backward, and compute the block once more there.
        pretrain_img_size: side of the images for which absolute positions are learned.
        pretrain_use_cls_token: their first is that of a class token, which is not used.
        out_feature: name of the feature map.

    Raises:
        ValueError: `num_heads` does not divide `embed_dim`.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Norm = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        window_block_indexes: Sequence[int] = (),
        residual_block_indexes: Sequence[int] = (),
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_feature: str = "last_feat",
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"ViT: embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.use_act_checkpoint = use_act_checkpoint
        self.patch_size = patch_size
        self._output_shape = {out_feature: ShapeSpec(channels=embed_dim, stride=patch_size)}

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embed = None
        if use_abs_pos:
            count = (pretrain_img_size // patch_size) ** 2 + bool(pretrain_use_cls_token)
            self.pos_embed = nn.Parameter(torch.zeros(1, count, embed_dim))
        self.blocks = nn.ModuleList()
        for i in range(depth):
            window = window_size if i in window_block_indexes else 0
            side = window or img_size // patch_size
            table_size = (side, side) if use_rel_pos else None
            attention = Attention(embed_dim, num_heads, qkv_bias, table_size, rel_pos_zero_init, window)
            drop_path = drop_path_rate * i / max(depth - 1, 1)
            has_convs = i in residual_block_indexes
            self.blocks.append(Block(embed_dim, attention, mlp_ratio, drop_path, norm_layer, act_layer, has_convs))

        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, in_chans, H, W) to `out_feature`, (B, embed_dim, H / patch_size, W / patch_size).

        Raises:
            ValueError: the images are smaller than a patch.
        """
        if min(x.shape[-2:]) < self.patch_size:
            raise ValueError(f"images of {x.shape[-2]} × {x.shape[-1]} pixels are smaller than a patch of the ViT")
        if x.device.type == "cpu":  # then the rows of the output are contiguous, as the blocks want them
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + resize_positions(self.pos_embed, self.pretrain_use_cls_token, x.shape[1:3])
        for block in self.blocks:
            if self.use_act_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        (name,) = self._output_shape
        return {name: x.permute(0, 3, 1, 2)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the feature map."""
        return dict(self._output_shape)
