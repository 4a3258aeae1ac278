"""The backbone and pyramid of Co-DINO ViT-L: EVA-02 (arXiv 2303.11331) and Sense-X's feature pyramid."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone import get_vit_lr_decay_rate
from detrex.modeling.backbone import EVA02_ViT
from torch import Tensor, nn

Size = tuple[int, int]  # height, width


def layer_decay(rate: float, num_layers: int) -> Callable[[str], float]:
    """Return an `lr_factor_func` for `get_default_optimizer_params`: layer-wise decay of a ViT's learning rate."""
    return partial(get_vit_lr_decay_rate, lr_decay_rate=rate, num_layers=num_layers)


class MapRotaryEmbedding(nn.Module):
    """Rotary positions of a map of any size, computed for each map. It has no parameters and no buffers.

    Args:
        dim: angles per axis, half the channels of a head: an even number.
        length: cells per axis in pretraining, to which the positions are scaled.
    """

    def __init__(self, dim: int, length: int):
        super().__init__()
        self.dim, self.length = dim, length
        self.size: Size | None = None  # of the map; detrex's attention gives only the tokens

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Rotate tokens (B, heads, height · width, D); `size` is (height, width), by default `self.size`."""
        height, width = self.size if size is None else size
        frequency = 10000.0 ** (-torch.arange(0, self.dim, 2, dtype=torch.float32, device=x.device) / self.dim)
        y = torch.arange(height, dtype=torch.float32, device=x.device) * (self.length / height)
        column = torch.arange(width, dtype=torch.float32, device=x.device) * (self.length / width)
        rows = (y[:, None] * frequency)[:, None].expand(-1, width, -1)
        columns = (column[:, None] * frequency)[None].expand(height, -1, -1)
        angle = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = angle.cos(), angle.sin()
        rotated = [first * cosine - second * sine, second * cosine + first * sine]
        return torch.stack(rotated, dim=-1).flatten(-2).to(x.dtype)


class EVA02Backbone(EVA02_ViT):
    """EVA-02 as in Co-DINO ViT-L: the global blocks keep no table of positions, and the feature map has a norm.

    Args:
        options: options of `EVA02_ViT`.
    """

    def __init__(
        self,
        embed_dim: int = 1024,
        num_heads: int = 16,
        patch_size: int = 16,
        pt_hw_seq_len: int = 16,
        **options,
    ):
        super().__init__(
            embed_dim=embed_dim, num_heads=num_heads, patch_size=patch_size, pt_hw_seq_len=pt_hw_seq_len, **options
        )
        table, self.rope_glb = self.rope_glb, None
        self.patch_side = patch_size
        self.map_rope = MapRotaryEmbedding(embed_dim // num_heads // 2, pt_hw_seq_len)
        for block in self.blocks:
            if block.attn.rope is table:
                block.attn.rope = self.map_rope
        self.out_norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to a dict of one feature map (B, embed_dim, H / patch_size, W / patch_size)."""
        self.map_rope.size = (x.shape[-2] // self.patch_side, x.shape[-1] // self.patch_side)
        features = super().forward(x)
        return {name: self.out_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for name, x in features.items()}


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BiaslessConv2d(nn.Module):
    """Convolution without bias; sizes stay, up to the stride.

    It is not an `nn.Conv2d`, since detrex's DINO sets the bias of each of these in its neck.
    """

    def __init__(self, channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.stride, self.padding = stride, kernel_size // 2
        self.weight = nn.Parameter(torch.empty(out_channels, channels, kernel_size, kernel_size))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, out_channels, H / stride, W / stride), rounded up."""
        return F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)


def _convolution(channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    return [BiaslessConv2d(channels, out_channels, kernel_size, stride), ChannelNorm(out_channels)]


class ViTPyramid(nn.Module):
    """Five levels from the one map of a plain backbone: strides 4 to 64 from a map of stride 16.

    Finer levels come from nearest-neighbour upsampling, coarser ones from max pooling; each level has convolutions of
    its own. It takes the place of a channel mapper.

    Args:
        in_channels: channels of the map.
        out_channels: channels of each level.
        in_feature: name of the map.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, in_feature: str = "last_feat"):
        super().__init__()
        self.in_feature = in_feature
        half, quarter = in_channels // 2, in_channels // 4

        def level(*layers: nn.Module, channels: int) -> nn.Sequential:
            output = [*_convolution(channels, out_channels, 1), nn.GELU(), *_convolution(out_channels, out_channels, 3)]
            return nn.Sequential(*layers, *output)

        def doubled(channels: int, out: int) -> list[nn.Module]:
            return [nn.Upsample(scale_factor=2), *_convolution(channels, out, 3), nn.GELU()]

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, padding=1)

        self.p2 = level(*doubled(in_channels, half), *doubled(half, quarter), channels=quarter)
        self.p3 = level(*doubled(in_channels, half), channels=half)
        self.p4 = level(channels=in_channels)
        self.p5 = level(pool(), channels=in_channels)
        coarser = _convolution(in_channels, in_channels, 3, stride=2)
        self.p6 = level(pool(), *coarser, nn.GELU(), channels=in_channels)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the levels (B, out_channels, H_l, W_l), finest first."""
        source = features[self.in_feature]
        return [level(source) for level in (self.p2, self.p3, self.p4, self.p5, self.p6)]
