"""Base class of backbone blocks."""

from torch import nn

from .batch_norm import FrozenBatchNorm2d


class CNNBlockBase(nn.Module):
    """Block of a backbone, from `in_channels` to `out_channels` channels with `stride`, which can be frozen."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Disable all gradients, replace batch norms by frozen ones, and return self."""
        self.requires_grad_(False)
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self)
