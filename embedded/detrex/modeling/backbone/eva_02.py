"""EVA-02 as a backbone: a plain ViT with rotary positions and gated feed-forward blocks (arXiv 2303.11331)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isqrt

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["EVA02_ViT"]

Size = tuple[int, int]  # height, width
Norm = Callable[[int], nn.Module]
_BASE = 10000.0  # of the wavelengths
_layer_norm = partial(nn.LayerNorm, eps=1e-6)


def rotary_angles(size: Size, dim: int, length: float | None, device: torch.device | None = None) -> Tensor:
    """Angles of the cells of a map: (height · width, 2 · dim) float32, row by row.

    The first `dim` angles of a cell belong to its row, the others to its column. Neighbouring angles 2j and 2j + 1 are
    equal: each pair of channels rotates together.

    Args:
        size: height and width in cells.
        dim: angles per axis, an even number.
        length: cells per axis in pretraining, to which the positions are scaled; None: positions count cells.
    """
    frequencies = _BASE ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    height, width = (
        torch.arange(extent, dtype=torch.float32, device=device) * (1.0 if length is None else length / extent)
        for extent in size
    )
    rows, columns = ((axis[:, None] * frequencies).repeat_interleave(2, dim=1) for axis in (height, width))
    grid = [rows[:, None].expand(-1, size[1], -1), columns[None].expand(size[0], -1, -1)]
    return torch.cat(grid, dim=-1).flatten(0, 1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate each pair of channels of tokens (B, heads, N, D) by its angle, given cosines and sines (N, D)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    quarter_turn = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cosine + quarter_turn * sine).to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Rotary positions (RoFormer, arXiv 2104.09864) on a square map; maps of other sizes get angles of their own.

    Args:
        dim: angles per axis: half the channels of a head.
        length: cells per axis in pretraining.
        side: cells per axis of the map whose sines and cosines are kept.
        interpolate: scale the positions to `length` cells per axis.
    """

    def __init__(self, dim: int, length: int, side: int, interpolate: bool = True):
        super().__init__()
        self.dim, self.side = dim, side
        self.length = length if interpolate else None
        angles = rotary_angles((side, side), dim, self.length)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Rotate tokens (B, heads, N, D) of a map of `size`, N = height · width."""
        is_known = all(isinstance(extent, int) for extent in size)  # else an export traces the size
        if is_known and tuple(size) == (self.side, self.side):
            return rotate(x, self.freqs_cos, self.freqs_sin)
        angles = rotary_angles(size, self.dim, self.length, x.device)
        return rotate(x, angles.cos(), angles.sin())


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions, within windows or over the whole map; keys have no bias.

    Args:
        dim: width of the tokens.
        num_heads: number of heads, a divisor of `dim`.
        qkv_bias: queries and values have a bias.
        rope: rotates queries and keys.
        window_size: side of the windows in cells; 0: attention over the whole map.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, rope: nn.Module, window_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.rope = rope
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape. Windows at the edge are filled up with zeros."""
        batch, height, width = x.shape[:3]
        side = self.window_size
        if not side:
            return self.attend(x.flatten(1, 2), (height, width)).view(x.shape)
        rows, columns = (height + side - 1) // side, (width + side - 1) // side
        x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
        windows = x.reshape(batch, rows, side, columns, side, -1).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        windows = self.attend(windows, (side, side)).view(batch, rows, columns, side, side, -1)
        joined = windows.transpose(2, 3).reshape(batch, rows * side, columns * side, -1)
        # By index: torch.export would bind a slice to whether there is something to cut off.
        joined = joined.index_select(1, torch.arange(height, device=x.device))
        return joined.index_select(2, torch.arange(width, device=x.device))

    def attend(self, x: Tensor, size: Size) -> Tensor:
        """Attention among the tokens (B, N, dim) of a map of `size`."""
        query = F.linear(x, self.q_proj.weight, self.q_bias)
        key = self.k_proj(x)
        value = F.linear(x, self.v_proj.weight, self.v_bias)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        output = F.scaled_dot_product_attention(self.rope(query, size), self.rope(key, size), value)
        return self.proj(output.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward block (arXiv 2002.05202) with a norm before its last layer."""

    def __init__(self, dim: int, hidden_dim: int, norm_layer: Norm):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim)
        self.w2 = nn.Linear(dim, hidden_dim)
        self.ffn_ln = norm_layer(hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) to the same shape."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    """Attention and a gated feed-forward block, each after a norm and added to its input.

    Args:
        drop_path: probability to drop a residual branch of a whole image in training (arXiv 1603.09382).
    """

    def __init__(self, dim: int, attention: Attention, mlp_ratio: float, drop_path: float, norm_layer: Norm):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = attention
        self.norm2 = norm_layer(dim)
        self.mlp = SwiGLU(dim, int(dim * mlp_ratio), norm_layer)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        kept = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1, 1).bernoulli_(kept) / kept


class PatchEmbed(nn.Module):
    """A convolution that turns each square patch of the image into one vector."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, H / patch_size, W / patch_size, embed_dim), contiguous."""
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


class EVA02_ViT(Backbone):  # noqa: N801 (detrex's name)
    """EVA-02 as a backbone: one feature map, of the stride of its patches.

    Pixels beyond the last whole patch, at the right and at the bottom, are not used.

    Args:
        img_size: side in pixels of the images whose rotary positions are kept for the global blocks. Other sizes work.
        patch_size: side of a patch in pixels.
        in_chans: channels of the images.
        embed_dim, depth, num_heads: width, number of blocks, heads of each. B: 768, 12, 12; L: 1024, 24, 16.
        mlp_ratio: hidden width of the feed-forward blocks, as a multiple of `embed_dim`.
        qkv_bias: queries and values have a bias.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        norm_layer: function from a width to a norm.
        use_abs_pos: add absolute position embeddings to the patches.
        pt_hw_seq_len: patches per axis in pretraining, for the rotary positions.
        intp_freq: scale rotary positions to the pretraining's range.
        window_size: side of the windows in patches; they need not divide the map.
        window_block_indexes: blocks that attend within windows; the others attend to the whole map.
        use_act_checkpoint: keep only the input of each block for the backward pass, which runs the block again.
        pretrain_img_size: side of the images for which absolute positions are learned.
        pretrain_use_cls_token: the first absolute position is that of a class token, which is not used.
        out_feature: name of the feature map.
        act_layer, use_rel_pos, rope, xattn: unused, as in detrex.
        residual_block_indexes: must be empty.

    Raises:
        ValueError: `num_heads` times 4 does not divide `embed_dim`; or there are residual blocks.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4 * 2 / 3,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Norm = _layer_norm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rope: bool = True,
        pt_hw_seq_len: int = 16,
        intp_freq: bool = True,
        window_size: int = 0,
        window_block_indexes: Sequence[int] = (),
        residual_block_indexes: Sequence[int] = (),
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_feature: str = "last_feat",
        xattn: bool = True,
    ):
        super().__init__()
        if embed_dim % (4 * num_heads):
            raise ValueError(
                f"EVA02_ViT: embed_dim={embed_dim} is not a multiple of 4 * num_heads={4 * num_heads}: rotary "
                "positions take the channels of a head in fours"
            )
        if residual_block_indexes:
            raise ValueError(
                f"EVA02_ViT: residual_block_indexes={list(residual_block_indexes)}: set it to []; there are none here"
            )
        self.patch_size = patch_size
        self.use_act_checkpoint = use_act_checkpoint
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self._output_shape = {out_feature: ShapeSpec(channels=embed_dim, stride=patch_size)}

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embed = None
        if use_abs_pos:
            count = (pretrain_img_size // patch_size) ** 2 + bool(pretrain_use_cls_token)
            self.pos_embed = nn.Parameter(torch.zeros(1, count, embed_dim))
        dim = embed_dim // num_heads // 2
        sides = window_size or pt_hw_seq_len, img_size // patch_size
        self.rope_win, self.rope_glb = (
            RotaryEmbedding(dim, pt_hw_seq_len, side if intp_freq else pt_hw_seq_len, intp_freq) for side in sides
        )
        self.blocks = nn.ModuleList()
        for index in range(depth):
            is_window = index in window_block_indexes
            rotary = self.rope_win if is_window else self.rope_glb
            attention = Attention(embed_dim, num_heads, qkv_bias, rotary, window_size if is_window else 0)
            drop_path = drop_path_rate * index / max(depth - 1, 1)
            self.blocks.append(Block(embed_dim, attention, mlp_ratio, drop_path, norm_layer))
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise linear layers and positions with a truncated normal of 0.02, biases with zero."""
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
            raise ValueError(
                f"EVA02_ViT: images of {x.shape[-2]} x {x.shape[-1]} pixels are smaller than a patch of "
                f"{self.patch_size}: use larger images"
            )
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.positions((x.shape[1], x.shape[2]))
        for block in self.blocks:
            if self.use_act_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        (name,) = self._output_shape
        return {name: x.permute(0, 3, 1, 2)}

    def positions(self, size: Size) -> Tensor:
        """Absolute positions (1, height, width, D) of a map of `size`, by bicubic interpolation."""
        grid = self.pos_embed[:, int(self.pretrain_use_cls_token) :]
        grid = grid.unflatten(1, (isqrt(grid.shape[1]), -1))
        if all(isinstance(extent, int) for extent in size) and tuple(size) == tuple(grid.shape[1:3]):
            return grid
        return F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bicubic").permute(0, 2, 3, 1)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the feature map."""
        return dict(self._output_shape)
