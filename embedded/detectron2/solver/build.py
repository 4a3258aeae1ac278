"""Parameter groups with learning rates and weight decays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Return parameter groups for a PyTorch optimizer, one for each distinct set of options.

    None keeps the optimizer's default. A shared parameter counts once, under its first name. Parameters without
    gradient are omitted. Later arguments of this list override earlier ones:

    Args:
        base_lr, weight_decay: the options of every parameter.
        lr_factor_func: maps the full parameter name to a factor of `base_lr`.
        weight_decay_norm: for the parameters of normalisation layers.
        bias_lr_factor, weight_decay_bias: for parameters named `bias`.
        overrides: options by the last part of the parameter's name, such as `{"sampling_offsets": {"lr": 1e-5}}`.

    Raises:
        ValueError: a factor of the learning rate without `base_lr`, or two rules for `bias`.
    """
    scales_bias = bias_lr_factor is not None and bias_lr_factor != 1.0
    if base_lr is None and (scales_bias or lr_factor_func is not None):
        raise ValueError("bias_lr_factor and lr_factor_func scale base_lr: set base_lr")

    by_name = {name: dict(options) for name, options in (overrides or {}).items()}
    bias = _given(lr=base_lr * bias_lr_factor if scales_bias else None, weight_decay=weight_decay_bias)
    if bias and "bias" in by_name:
        raise ValueError("overrides has `bias`, and bias_lr_factor or weight_decay_bias is set too: use only one")
    by_name.setdefault("bias", bias)

    seen: set[nn.Parameter] = set()
    groups: dict[tuple, dict[str, Any]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            options = _given(lr=base_lr, weight_decay=weight_decay)
            if lr_factor_func is not None:
                options["lr"] = base_lr * lr_factor_func(f"{module_name}.{name}".lstrip("."))
            if isinstance(module, _NORMS):
                options |= _given(weight_decay=weight_decay_norm)
            options |= by_name.get(name, {})
            group = groups.setdefault(tuple(sorted(options.items())), {"params": [], **options})
            group["params"].append(parameter)
    return list(groups.values())


def _given(**options: float | None) -> dict[str, float]:
    return {name: value for name, value in options.items() if value is not None}
