"""Which numbers a device computes with faster than with float32."""

from __future__ import annotations

import platform

import torch


def autocast_is_faster(dtype: torch.dtype, device: str | torch.device) -> bool:
    """Whether autocast to `dtype`, bfloat16 or float16, is meant for that device.

    A CPU without units for such numbers converts them back and forth: an R50 4-scale in bfloat16 takes three times as
    long by AVX2 as in float32, and as long by AVX512. Other devices are taken to have the units.
    """
    if torch.device(device).type != "cpu":
        return True
    kernels = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    # PyTorch counts AVX512 alone as support for bfloat16, and knows better since 2.5.
    units = {torch.bfloat16: "_is_avx512_bf16_supported"} if platform.machine() in ("x86_64", "AMD64") else {}
    return _says(torch.ops.mkldnn, kernels.get(dtype)) and _says(torch.cpu, units.get(dtype))


def _says(module: object, name: str | None) -> bool:
    """What a question of PyTorch's own answers; true where this version does not have it."""
    question = getattr(module, name, None) if name else None
    return question is None or bool(question())
