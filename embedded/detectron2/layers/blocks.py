"""What a backbone is assembled from."""

from torch import nn

from .batch_norm import FrozenBatchNorm2d


class CNNBlockBase(nn.Module):
    """A part of a backbone that can be frozen, from `in_channels` to `out_channels` channels at `stride`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Stop training: no parameter takes gradients, and batch norms become frozen ones. Returns self."""
        self.requires_grad_(False)
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self)
