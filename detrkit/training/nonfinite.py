"""Diagnose a training step whose losses or gradients are not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detrkit.runtime.files import atomic_write

from .randomness import random_states_kept, set_random_states

logger = logging.getLogger(__name__)


def image_names(batch: Any) -> list[str]:
    """File names of the images of a batch, as far as it has them."""
    items = batch if isinstance(batch, Sequence) else []
    return [str(item["file_name"]) for item in items if isinstance(item, Mapping) and "file_name" in item]


def first_bad_layer(model: nn.Module, step: Callable[[nn.Module], Tensor], random_states: dict[str, Any]) -> str:
    """Repeat a step and return where a number first is not finite, such as "the output of backbone.stem".

    Every process of a run calls it, because computing the losses needs all of them.

    Args:
        model: its weights do not change, its gradients are deleted.
        step: from a model to the sum of its losses.
        random_states: the states before the step.

    Returns:
        "" if all numbers are finite.
    """
    # DistributedDataParallel would wait for the gradients of processes that find nothing.
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    weights = (name for name, parameter in bare.named_parameters() if not parameter.isfinite().all())
    if (name := next(weights, None)) is not None:
        return f"the weights of {name}"
    backward: list[str] = []

    def check_layer(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not tensor.isfinite().all():
                    raise _NotFiniteError(name)
                if tensor.requires_grad and tensor.grad_fn is not None:
                    tensor.register_hook(lambda gradient: _check_gradient(gradient, name, backward))

        return hook

    handles = [module.register_forward_hook(check_layer(name)) for name, module in bare.named_modules() if name]
    try:
        with random_states_kept():
            set_random_states(random_states)
            loss = step(bare)
            if loss.requires_grad:
                loss.backward()
    except _NotFiniteError as layer:
        return f"the output of {layer}"
    except ValueError:
        logger.debug("The step failed before its losses")
    finally:
        for handle in handles:
            handle.remove()
        bare.zero_grad(set_to_none=True)
    return f"the gradient of the output of {backward[0]}" if backward else ""


class _NotFiniteError(Exception):
    """A layer's output is not finite; the message is its name."""


def _check_gradient(gradient: Tensor, name: str, found: list[str]) -> None:
    if not found and not gradient.isfinite().all():
        found.append(name)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in an output or in losses."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def save_batch(batch: Any, path: Path, **facts: Any) -> None:
    """Save a batch and `facts` as tensors and plain data, which `torch.load(weights_only=True)` reads.

    `Instances` become a dict of their fields.
    """
    with atomic_write(path) as file:
        torch.save({"batch": _plain(batch), **facts}, file)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor | str | int | float | bool | type(None)):
        return value.detach().cpu() if isinstance(value, Tensor) else value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "get_fields"):  # Instances
        return {"image_size": list(value.image_size), **_plain(value.get_fields())}
    return _plain(value.tensor) if isinstance(getattr(value, "tensor", None), Tensor) else repr(value)
