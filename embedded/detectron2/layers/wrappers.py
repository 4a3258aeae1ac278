"""Extensions of torch functions and layers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .batch_norm import FrozenBatchNorm2d


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with an optional norm and activation of its output, in this order.

    Args:
        norm: a module, see `get_norm`, or None.
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
        """Transform (B, in_channels, H, W) to (B, out_channels, H', W')."""
        if isinstance(self.norm, FrozenBatchNorm2d):
            # Folding a constant norm into the weights saves a pass over the output and over its gradient.
            scale, bias = self.norm.scale_and_shift()
            bias = bias if self.bias is None else torch.addcmul(bias, self.bias, scale)
            x = self._conv_forward(x, self.weight * scale[:, None, None, None], bias)
        else:
            x = super().forward(x)
            x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors; a single tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors), dim)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of nonzero entries, one tensor per dimension; a scalar counts as one-dimensional."""
    return torch.atleast_1d(x).nonzero(as_tuple=True)
