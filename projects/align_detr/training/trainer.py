"""One training step, the same on every platform and device."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn


class Trainer(SimpleTrainer):
    """detectron2's `SimpleTrainer` and `AMPTrainer` in one, whose mixed precision does not ask for CUDA.

    Losses are read before the optimizer steps, in one transfer from the device, so that one that is not finite never
    reaches the parameters.

    Args:
        model: from a batch to a mapping of losses, of which the sum is minimised, or to that sum itself.
        data_loader: an endless iterable of batches.
        optimizer: over the model's parameters.
        precision: torch.float16 (with loss scaling) or torch.bfloat16 puts the forward pass under autocast on the
            device of the parameters; None leaves it as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        precision: torch.dtype | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.precision = precision
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = grad_scaler(self.device_type) if precision == torch.float16 else None
        self._batches: Iterator[Any] | None = None

    def run_step(self) -> None:
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        data = next(self._batches)
        data_time = time.perf_counter() - start

        # Before the forward pass, or the last step's gradients would be there still when memory is short.
        self.optimizer.zero_grad()
        with self._autocast():
            losses = self.model(data)
        losses = {"total_loss": losses} if isinstance(losses, Tensor) else losses
        loss = sum(losses.values())
        (self.grad_scaler.scale(loss) if self.grad_scaler else loss).backward()
        self.after_backward()
        self._record(losses, data_time)
        if self.grad_scaler:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, self.precision) if self.precision else nullcontext()

    def _record(self, losses: Mapping[str, Tensor], data_time: float) -> None:
        """Losses, their mean over the processes, and their sum; the data's time, the slowest process's.

        Raises:
            FloatingPointError: on every process, if the sum is not finite on any of them.
        """
        values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()]).tolist()
        gathered = comm.all_gather((values, data_time))
        means = [sum(rank) / len(gathered) for rank in zip(*(values for values, _ in gathered), strict=True)]
        by_name = dict(zip(losses, means, strict=True))
        total = sum(means)
        if not math.isfinite(total):
            bad = ", ".join(f"{name}={value}" for name, value in by_name.items() if not math.isfinite(value))
            raise FloatingPointError(
                f"the loss is not finite at iteration {self.iter}: {bad or total}; "
                "a lower learning rate, gradient clipping or full precision may help"
            )
        self.storage.put_scalar("data_time", max(seconds for _, seconds in gathered))
        self.storage.put_scalars(**{"total_loss": total, **by_name})

    def state_dict(self) -> dict[str, Any]:
        scale = {"grad_scaler": self.grad_scaler.state_dict()} if self.grad_scaler else {}
        return super().state_dict() | scale

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.grad_scaler and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def grad_scaler(device_type: str) -> "torch.amp.GradScaler":
    """A scaler of float16 losses for any device."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device_type)
    return torch.cuda.amp.GradScaler(enabled=device_type == "cuda")  # torch < 2.3
