"""Numerical helpers."""

import torch.nn.functional as F
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of `x`, elementwise and differentiable.

    Values outside [0, 1] count as 0 or 1, and both `x` and `1 - x` are kept at `eps` or more, so that the result
    lies within ±log(1/eps), about ±6.9 by default.
    """
    x = x.clamp(0, 1)
    return x.clamp(min=eps).log() - (1 - x).clamp(min=eps).log()


def interpolate(
    input: Tensor,
    size: int | tuple[int, int] | None = None,
    scale_factor: float | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """`torch.nn.functional.interpolate` under the name that detrex gives it."""
    return F.interpolate(input, size=size, scale_factor=scale_factor, mode=mode, align_corners=align_corners)
