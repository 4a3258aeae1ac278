"""Exponential moving average (EMA) of a model's weights for training and evaluation.

The average is in `model.ema_state`. `train.model_ema.enabled` turns it on; `decay` and `device` are in the same node
(device "": the model's; "cpu" saves GPU memory).
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
    """A copy of all parameters and persistent buffers of a model, by name; shared tensors have one entry.

    Attributes:
        state: the tensors by name, empty before `save_from`.
    """

    def __init__(self) -> None:
        self.state: dict[str, torch.Tensor] = {}

    @classmethod
    def FromModel(cls, model: nn.Module, device: str = "") -> EMAState:
        """Copy the current weights of `model` to `device`, by default the model's."""
        state = cls()
        state.save_from(model, device)
        return state

    @torch.no_grad()
    def save_from(self, model: nn.Module, device: str = "") -> None:
        """Replace the copy by the current weights of `model`."""
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
        """Write these weights into `model` inside the block; restore its own weights on exit."""
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
        """Move the copy to `device`, in place."""
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}
        return self

    def has_inited(self) -> bool:
        """Return whether there is a copy."""
        return bool(self.state)

    def clear(self) -> None:
        """Delete the copy."""
        self.state = {}

    def get_model_state_iterator(self, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over names and tensors to average: parameters, then buffers, if they are in the state dict."""
        kept = model.state_dict().keys()
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        return ((name, tensor) for name, tensor in tensors if name in kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], strict: bool = True) -> None:
        """Load a `state_dict()`.

        Raises:
            ValueError: `strict` is set, and the existing copy has other names or shapes.
        """
        if strict and self.has_inited():
            ours = {name: tensor.shape for name, tensor in self.state.items()}
            theirs = {name: tensor.shape for name, tensor in state_dict.items()}
            if different := sorted(name for name, _ in ours.items() ^ theirs.items()):
                raise ValueError(
                    f"the averaged weights belong to another model; different: {', '.join(different[:3])}"
                )
        self.state = {name: tensor.clone() for name, tensor in state_dict.items()}


class EMAUpdater:
    """Update an average: average = decay * average + (1 - decay) * weights; integer tensors are copied.

    Args:
        state: the average, updated in place.
        decay: in [0, 1).
        device: device of the average; "": the model's.
    """

    def __init__(self, state: EMAState, decay: float = 0.999, device: str = ""):
        if not 0 <= decay < 1:
            raise ValueError(f"train.model_ema.decay is {decay}, but must be at least 0 and below 1")
        self.state = state
        self.decay = decay
        self.device = device
        self._average = get_ema_multi_avg_fn(decay)

    def init_state(self, model: nn.Module) -> None:
        """Start from the current weights."""
        self.state.save_from(model, self.device)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average once."""
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
    """Give `model` an empty `ema_state` if `train.model_ema.enabled`."""
    if cfg.train.model_ema.enabled:
        _remove_ddp(model).ema_state = EMAState()


def may_get_ema_checkpointer(cfg: DictConfig, model: nn.Module) -> dict[str, EMAState]:
    """Return the checkpointable of the average, `{"ema_state": ...}`; an empty dict if it is not enabled."""
    return {"ema_state": get_model_ema_state(model)} if cfg.train.model_ema.enabled else {}


def get_model_ema_state(model: nn.Module) -> EMAState:
    """Return the average of `model`.

    Raises:
        ValueError: `model` has no average.
    """
    state = getattr(_remove_ddp(model), "ema_state", None)
    if state is None:
        raise ValueError("the model has no averaged weights: call may_build_model_ema with train.model_ema.enabled")
    return state


def apply_model_ema(
    model: nn.Module, state: EMAState | None = None, save_current: bool = False
) -> EMAState | None:
    """Write the average (`state`, by default the model's) into `model`.

    Returns:
        The previous weights if `save_current`, else None.
    """
    state = state or get_model_ema_state(model)
    model = _remove_ddp(model)
    own = EMAState.FromModel(model, str(state.device or "")) if save_current else None
    state.apply_to(model)
    return own


@contextmanager
def apply_model_ema_and_restore(model: nn.Module, state: EMAState | None = None) -> Iterator[None]:
    """Use the averaged weights of `model` inside the block."""
    with (state or get_model_ema_state(model)).apply_and_restore(_remove_ddp(model)):
        yield


class EMAHook(HookBase):
    """Update the average after each step. It starts from the initial weights or from a checkpoint's average."""

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
