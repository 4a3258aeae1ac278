"""Activation checkpointing: less memory in training, for one more forward pass of the layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_LISTS_OF_BLOCKS = re.compile(r"blocks|layer\d")
"""Names of the lists of blocks in Swin, ViT, EVA-02 and timm's models."""


def checkpoint_activations(model: nn.Module) -> int:
    """Keep only the inputs of the layers of backbone, encoder and decoder for the backward pass, which runs each layer
    a second time. Losses and gradients stay as they are, with dropout and stochastic depth too.

    The layers' `forward` is replaced in place, so names of parameters stay, and detrex's own detectors work too. Blocks
    with batch normalisation that is not frozen are left as they are: a second pass would update its statistics twice.

    Args:
        model: a detector with `backbone` and `transformer`; parts that are not there are left out.

    Returns:
        The number of layers.
    """
    transformer = getattr(model, "transformer", None)
    layers = [*_blocks(getattr(model, "backbone", None))]
    for name in ("encoder", "decoder"):
        layers += getattr(getattr(transformer, name, None), "layers", None) or ()
    for layer in layers:
        layer.forward = partial(_run_checkpointed, layer.forward)  # a module around it would rename its parameters
    return len(layers)


def _blocks(module: nn.Module | None, name: str = "") -> Iterator[nn.Module]:
    """Blocks of a backbone, without the blocks inside other blocks."""
    for child_name, child in module.named_children() if module is not None else ():
        is_listed = isinstance(module, nn.ModuleList | nn.Sequential) and _LISTS_OF_BLOCKS.fullmatch(name)
        if is_listed or isinstance(child, CNNBlockBase):
            if not any(isinstance(part, _BatchNorm) for part in child.modules()):
                yield child
        else:
            yield from _blocks(child, child_name)


def _run_checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
