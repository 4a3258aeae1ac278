"""Types with which a device computes faster than with float32."""

from __future__ import annotations

import platform

import torch


def autocast_is_faster(dtype: torch.dtype, device: str | torch.device) -> bool:
    """Whether autocast to `dtype`, bfloat16 or float16, is faster than float32 on a device.

    A CPU without units for the type converts each number: an R50 4-scale in bfloat16 takes three times as long with
    AVX2 as in float32, and as long with AVX512. All other devices are assumed to have the units.
    """
    if torch.device(device).type != "cpu":
        return True
    kernels = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    # PyTorch counts AVX512 alone as support for bfloat16, and knows better since 2.5.
    units = {torch.bfloat16: "_is_avx512_bf16_supported"} if platform.machine() in ("x86_64", "AMD64") else {}
    return _supports(torch.ops.mkldnn, kernels.get(dtype)) and _supports(torch.cpu, units.get(dtype))


def _supports(module: object, name: str | None) -> bool:
    """Result of a check of PyTorch; true if this version does not have the check."""
    check = getattr(module, name, None) if name else None
    return check is None or bool(check())
