"""torchvision's operators, where they are installed and load."""

from functools import cache
from types import ModuleType

import torch


@cache
def _operators() -> ModuleType | None:
    try:
        import torchvision.ops
    except Exception:  # a wheel of another build of PyTorch may raise anything
        return None
    return torchvision.ops


def operators(device: torch.device) -> ModuleType | None:
    """`torchvision.ops` where it is to be used: on a GPU. On a CPU its RoIAlign takes five times as long as the one
    here, and its suppression as long (see the README for the measurement); None there."""
    return _operators() if device.type == "cuda" else None
