"""Building detectron2's Swin and ViT without storage."""

import torch

_linspace = torch.linspace


def _linspace_with_values(*args, **kwargs):
    if torch.get_default_device().type == "meta":
        kwargs.setdefault("device", "cpu")
    return _linspace(*args, **kwargs)


def keep_linspace_values() -> None:
    """Let `torch.linspace` give numbers under `torch.device("meta")`: detectron2's backbones read the rates of
    stochastic depth from it when they are built."""
    torch.linspace = _linspace_with_values
