"""Detectors in float64, which rounds nothing that would show in a float32: to tell rounding from a mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Makes float64 of what asks for float32 by name, as positions do, which are made of masks that have no dtype.

    Args:
        instead: functions to call in place of others, with the same arguments.
    """

    def __init__(self, instead: Mapping[Callable, Callable] | None = None):
        super().__init__()
        self._instead = {torch.Tensor.float: torch.Tensor.double, **(instead or {})}

    def __torch_function__(
        self, function: Callable, types: Sequence[type], arguments: tuple = (), options: dict | None = None
    ) -> Any:
        options = dict(options or {})
        if options.get("dtype") is torch.float32:
            options["dtype"] = torch.float64
        return self._instead.get(function, function)(*arguments, **options)


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d` as one product of matrices.

    Raises:
        ValueError: it has groups, or a padding that is named.
    """
    if groups != 1 or isinstance(padding, str):
        raise ValueError("convolutions with groups, or with a padding by its name, cannot be exported in float64")
    (down, right), (y, x), (dy, dx) = (
        pair if isinstance(pair, Sequence) else (pair, pair) for pair in (stride, padding, dilation)
    )
    height, width = weight.shape[-2:]
    padded = F.pad(images, (x, x, y, y)) if x or y else images
    # What each cell of the kernel sees. Ends count from the image's: a graph for any size has no number for them.
    seen = [
        padded[:, :, i * dy : (i + 1 - height) * dy or None : down, j * dx : (j + 1 - width) * dx or None : right]
        for i in range(height)
        for j in range(width)
    ]
    products = torch.cat(seen, dim=1).permute(0, 2, 3, 1) @ weight.permute(2, 3, 1, 0).flatten(0, 2)
    return (products if bias is None else products + bias).permute(0, 3, 1, 2)


def group_norm(images: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """`torch.nn.functional.group_norm` by its definition, of maps."""
    groups = images.flatten(2).unflatten(1, (num_groups, -1)).flatten(2)
    centered = groups - groups.mean(-1, keepdim=True)
    normal = centered * ((centered * centered).mean(-1, keepdim=True) + eps).rsqrt()
    return normal.reshape(images.shape) * weight[:, None, None] + bias[:, None, None]


def interpolate(images: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """`torch.nn.functional.interpolate` in float32; masks are resized by it, to the nearest."""
    return F.interpolate(images.to(torch.float32), *arguments, **options).to(images.dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` at inference by its definition; the mask is one to add."""
    weights = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return (weights if attn_mask is None else weights + attn_mask).softmax(-1) @ value


def prelu(images: Tensor, weight: Tensor) -> Tensor:
    """`torch.nn.functional.prelu` with one slope for all channels."""
    return images.clamp(min=0) + weight * images.clamp(max=0)


# What ONNX Runtime has no float64 of on a CPU, in operators that it has.
IN_OTHER_OPERATORS = {
    torch.conv2d: convolve,
    F.group_norm: group_norm,
    F.interpolate: interpolate,
    F.prelu: prelu,
    F.scaled_dot_product_attention: attend,
}
