"""Optional operators of torchvision."""

from functools import cache
from types import ModuleType

import torch


@cache
def _operators() -> ModuleType | None:
    try:
        import torchvision.ops
    except Exception:  # a wheel for another build of PyTorch may raise anything
        return None
    return torchvision.ops


def operators(device: torch.device) -> ModuleType | None:
    """Return `torchvision.ops` on a GPU if it can be imported, else None.

    On a CPU the functions here are faster (RoIAlign) or equally fast (suppression); see the README.
    """
    return _operators() if device.type == "cuda" else None
