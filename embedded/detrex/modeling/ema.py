"""Exponential moving average of a model's weights, and its use in training and evaluation.

The model carries its average as `model.ema_state`. Enabled by `train.model_ema.enabled`, with `decay`, and `device`
("" for the model's own, "cpu" to save GPU memory).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import HookBase
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMAState:
    """A copy of all parameters and persistent buffers of a model, by name; a shared one is there once.

    Attributes:
        state: the tensors, empty until `save_from`.
    """

    def __init__(self) -> None:
        self.state: dict[str, torch.Tensor] = {}

    @classmethod
    def FromModel(cls, model: nn.Module, device: str = "") -> EMAState:
        """The present weights of `model`, on its device or on the one given."""
        state = cls()
        state.save_from(model, device)
        return state

    @torch.no_grad()
    def save_from(self, model: nn.Module, device: str = "") -> None:
        """Replace the copy by the present weights of `model`."""
        self.state = {
            name: tensor.detach().clone().to(device or tensor.device)
            for name, tensor in self.get_model_state_iterator(model)
        }

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Write the copy into `model`."""
        for name, tensor in self.get_model_state_iterator(model):
            tensor.copy_(self.state[name])

    @contextmanager
    def apply_and_restore(self, model: nn.Module) -> Iterator[EMAState]:
        """Use these weights in `model` inside the block, and restore its own on exit."""
        own = EMAState.FromModel(model, str(self.device or ""))
        try:
            self.apply_to(model)
            yield own
        finally:
            own.apply_to(model)

    @property
    def device(self) -> torch.device | None:
        """Device of the copy; None without a copy."""
        return next((tensor.device for tensor in self.state.values()), None)

    def to(self, device: str | torch.device) -> EMAState:
        """Move the copy, in place."""
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}
        return self

    def has_inited(self) -> bool:
        """Whether there is a copy."""
        return bool(self.state)

    def clear(self) -> None:
        """Forget the copy."""
        self.state = {}

    def get_model_state_iterator(self, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors that are averaged: the parameters and buffers of the state dict."""
        kept = model.state_dict().keys()
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        return ((name, tensor) for name, tensor in tensors if name in kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], strict: bool = True) -> None:
        """Take up `state_dict()`.

        Raises:
            ValueError: if `strict`, and there is a copy already with other names or shapes.
        """
        if strict and self.has_inited():
            ours = {name: tensor.shape for name, tensor in self.state.items()}
            theirs = {name: tensor.shape for name, tensor in state_dict.items()}
            if different := sorted(name for name, _ in ours.items() ^ theirs.items()):
                raise ValueError(
                    f"these averaged weights are of another model, which differs in {', '.join(different[:3])}"
                )
        self.state = {name: tensor.clone() for name, tensor in state_dict.items()}


class EMAUpdater:
    """Moves a state towards a model: average = decay * average + (1 - decay) * weights; integers are copied.

    Args:
        state: the average, updated in place.
        decay: in [0, 1).
        device: where to keep it, "" for the model's device.
    """

    def __init__(self, state: EMAState, decay: float = 0.999, device: str = ""):
        if not 0 <= decay < 1:
            raise ValueError(f"train.model_ema.decay is {decay}, but must be at least 0 and below 1")
        self.state = state
        self.decay = decay
        self.device = device
        self._average = get_ema_multi_avg_fn(decay)

    def init_state(self, model: nn.Module) -> None:
        """Start from the present weights."""
        self.state.save_from(model, self.device)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step of the average."""
        averages, weights = [], []
        for name, tensor in self.state.get_model_state_iterator(model):
            average = self.state.state[name]
            if tensor.is_floating_point():
                averages.append(average)
                weights.append(tensor.detach().to(average.device))
            else:
                average.copy_(tensor)
        self._average(averages, weights, None)


def _remove_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model


def may_build_model_ema(cfg: DictConfig, model: nn.Module) -> None:
    """Give `model` an empty `ema_state`, if the config asks for an average."""
    if cfg.train.model_ema.enabled:
        _remove_ddp(model).ema_state = EMAState()


def may_get_ema_checkpointer(cfg: DictConfig, model: nn.Module) -> dict[str, EMAState]:
    """What a checkpointer has to save for the average: `{"ema_state": ...}`, or nothing if it is not enabled."""
    return {"ema_state": get_model_ema_state(model)} if cfg.train.model_ema.enabled else {}


def get_model_ema_state(model: nn.Module) -> EMAState:
    """The average that `model` carries.

    Raises:
        ValueError: it carries none.
    """
    state = getattr(_remove_ddp(model), "ema_state", None)
    if state is None:
        raise ValueError("the model has no averaged weights: call may_build_model_ema with train.model_ema.enabled")
    return state


def apply_model_ema(
    model: nn.Module, state: EMAState | None = None, save_current: bool = False
) -> EMAState | None:
    """Write the average (`state`, or the one that `model` carries) into `model`.

    Returns:
        The weights that it had, if `save_current`.
    """
    state = state or get_model_ema_state(model)
    model = _remove_ddp(model)
    own = EMAState.FromModel(model, str(state.device or "")) if save_current else None
    state.apply_to(model)
    return own


@contextmanager
def apply_model_ema_and_restore(model: nn.Module, state: EMAState | None = None) -> Iterator[None]:
    """Let `model` have its averaged weights inside the block."""
    with (state or get_model_ema_state(model)).apply_and_restore(_remove_ddp(model)):
        yield


class EMAHook(HookBase):
    """Updates the average after each step. It starts from the weights at the start, or from a checkpoint's average."""

    def __init__(self, cfg: DictConfig, model: nn.Module):
        self.model = _remove_ddp(model)
        self.ema = get_model_ema_state(model)
        self.device = cfg.train.model_ema.device
        self.updater = EMAUpdater(self.ema, cfg.train.model_ema.decay, self.device)

    def before_train(self) -> None:
        if self.ema.has_inited():
            self.ema.to(self.device or next(self.model.parameters()).device)
        else:
            self.updater.init_state(self.model)

    def after_step(self) -> None:
        self.updater.update(self.model)
