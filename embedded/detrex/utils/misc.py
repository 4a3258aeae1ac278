"""Numerical helpers."""

import torch.nn.functional as F
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the logit of `x`, elementwise and differentiable.

    `x` is clamped to [0, 1], `x` and `1 - x` are clamped to at least `eps`. The result is within ±log(1/eps), by
    default about ±6.9.
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
    """`torch.nn.functional.interpolate` under detrex's name."""
    return F.interpolate(input, size=size, scale_factor=scale_factor, mode=mode, align_corners=align_corners)
