"""Thin extensions of torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .batch_norm import FrozenBatchNorm2d


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with two more keyword arguments, applied to its output in this order.

    Args:
        norm: a module such as `get_norm` returns, or None.
        activation: a module or function, or None.
    """

    def __init__(
        self,
        *args,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        if isinstance(self.norm, FrozenBatchNorm2d):
            # In the weights, a constant norm takes no pass over the output and its gradient.
            scale, bias = self.norm.scale_and_shift()
            bias = bias if self.bias is None else torch.addcmul(bias, self.bias, scale)
            x = self._conv_forward(x, self.weight * scale[:, None, None, None], bias)
        else:
            x = super().forward(x)
            x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, without the copy for a single tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors), dim)
