"""Training loop with hooks around each iteration."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

logger = logging.getLogger(__name__)


class HookBase:
    """Something to do at fixed points of the training. A subclass defines the methods that it needs.

    An iteration calls `before_step`, `after_backward` (gradients are there, scaled under fp16) and `after_step`.

    Attributes:
        trainer: set when a trainer registers the hook; None before.
    """

    trainer: TrainerBase | None = None

    def before_train(self) -> None:
        """Before the first iteration."""

    def after_train(self) -> None:
        """After the last iteration, and after one that raised: then `trainer.iter < trainer.max_iter`."""

    def before_step(self) -> None:
        """Before each iteration."""

    def after_backward(self) -> None:
        """Between the backward pass and the optimizer's step."""

    def after_step(self) -> None:
        """After each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints. A hook with a state also defines `load_state_dict(state)`."""
        return {}


class TrainerBase:
    """Calls `run_step` for each iteration and the registered hooks, in order, around it.

    Attributes:
        iter: the iteration that is running, from 0; `max_iter` once all are done.
        start_iter, max_iter: the range of the run.
        storage: its metrics.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = self.max_iter = 0
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Append hooks, without the entries that are None.

        Raises:
            TypeError: one of them is not a HookBase.
        """
        hooks = [hook for hook in hooks if hook is not None]
        if strangers := [hook for hook in hooks if not isinstance(hook, HookBase)]:
            raise TypeError(f"a hook derives from HookBase, which {type(strangers[0]).__name__} does not")
        for hook in hooks:
            hook.trainer = self
        self._hooks += hooks

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from `start_iter` up to, but not including, `max_iter`."""
        logger.info("Training from iteration %d to %d", start_iter, max_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration, and the hooks' states by class name; the first hook of a class counts."""
        states: dict[str, dict[str, Any]] = {}
        for hook in self._hooks:
            if state := hook.state_dict():
                states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, "hooks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict()`. States of hooks that are not registered are skipped with a warning."""
        self.iter = state_dict["iteration"]
        hooks = {type(hook).__qualname__: hook for hook in reversed(self._hooks)}
        for name, state in state_dict.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(state)
            else:
                logger.warning("The checkpoint has state of a hook that does not run now: %s", name)


class SimpleTrainer(TrainerBase):
    """One model, one optimizer: forward, backward, step.

    Args:
        model: from a batch to a mapping of losses, of which the sum is minimised, or to that sum itself.
        data_loader: an endless iterable of batches.
        optimizer: over the model's parameters.
        gather_metric_period: every how many iterations the losses are checked, averaged over processes and recorded.
        zero_grad_before_forward: zero the gradients before the forward pass, not before the backward pass.
        async_write_metrics: accepted for code written for detectron2. Losses are always read before the optimizer
            steps, so that one that is not finite never reaches the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ):
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._batches: Iterator[Any] | None = None

    def run_step(self) -> None:
        start = time.perf_counter()
        data = self._next_batch()
        data_time = time.perf_counter() - start

        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses = self.model(data)
        losses = {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        if (self.iter + 1) % self.gather_metric_period == 0:
            self.write_metrics(losses, data_time, self.iter)
        self.optimizer.step()

    def _next_batch(self) -> Any:
        if self._batches is None:
            self._batches = iter(self.data_loader)
        return next(self._batches)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = ""
    ) -> None:
        """Record losses (their mean over the processes), their sum as `total_loss`, and `data_time` (the slowest's).

        All processes have to call it. There is one transfer from the device, however many losses there are.

        Raises:
            FloatingPointError: on every process, if the sum is not finite on any of them.
        """
        names = list(loss_dict)
        values = torch.stack([loss.detach().float().reshape(()) for loss in loss_dict.values()]).tolist()
        gathered = comm.all_gather((dict(zip(names, values, strict=True)), data_time))
        losses = {name: sum(rank[name] for rank, _ in gathered) / len(gathered) for name in names}
        total = sum(losses.values())
        if not math.isfinite(total):
            bad = ", ".join(f"{name}={value}" for name, value in losses.items() if not math.isfinite(value))
            raise FloatingPointError(
                f"the loss is not finite at iteration {cur_iter}: {bad or total}; "
                "a lower learning rate, gradient clipping or full precision may help"
            )
        storage = get_event_storage()
        storage.put_scalar("data_time", max(seconds for _, seconds in gathered), cur_iter=cur_iter)
        for name, value in losses.items():
            storage.put_scalar(prefix + name, value, cur_iter=cur_iter)
        if "total_loss" not in losses:
            storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
