"""One training step, the same on every platform and device."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.engine import SimpleTrainer
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor, nn

from detrkit.runtime.threads import ThreadChooser

from .data_workers import is_worker_death, next_batch
from .nonfinite import first_bad_layer, image_names, save_batch
from .randomness import random_states
from .run_state import BeforeCheckpoint
from .stream import ResumableLoader

logger = logging.getLogger(__name__)

NO_CLIPPING = {"max_norm": math.inf}
HISTORY = 1000  # values of a metric: the longest window of a writer


class Pass(NamedTuple):
    """One forward and backward pass: the batch, the random states before it, and its weighted losses."""

    batch: Any
    before: dict[str, Any]
    losses: dict[str, Tensor]


class Trainer(SimpleTrainer):
    """Trainer of one model: forward, backward, gradient clipping, step; in float32 or mixed precision on any device.

    Losses and gradient norm are read before the optimizer steps, in one transfer from the device, so that values that
    are not finite never reach the parameters. They end the training; the batch is saved, and the layer named.

    Args:
        model: maps a batch to a mapping of losses, whose sum is minimised, or to that sum.
        data_loader: an endless iterable of batches.
        optimizer: over the model's parameters.
        precision: torch.float16 (with loss scaling) or torch.bfloat16 puts the forward pass under autocast on the
            device of the parameters; None uses no autocast.
        skip_nonfinite: number of steps in a row with such values that are skipped, before the training ends.
        folder: where the batches of such steps are saved.
        clip_grad: arguments of `torch.nn.utils.clip_grad_norm_`; None: gradients are not clipped.
        report_phase: called when a part of a step begins: "reading data", "the forward pass", …, and "" after it.
        accumulate: number of batches of a step. Their losses are weighted as if they were one batch; see
            `accumulation_weights`.

    Attributes:
        grad_norm: norm of this step's gradients before clipping, a tensor without dimensions.
        unfinished_iteration: the iteration of a checkpoint that was saved before evaluation; its remaining hooks run
            before the next iteration.
        worker_death: PyTorch's message about a data worker that died and ended the training; empty if none did.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        precision: torch.dtype | None = None,
        skip_nonfinite: int = 0,
        folder: str | os.PathLike = ".",
        clip_grad: Mapping[str, float] | None = None,
        report_phase: Callable[[str], None] = lambda phase: None,
        accumulate: int = 1,
    ):
        super().__init__(model, data_loader, optimizer)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            stride_gradients_as_parameters(model)
        self.precision = precision
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = grad_scaler(self.device_type) if precision == torch.float16 else None
        self.skip_nonfinite = skip_nonfinite
        self.grad_norm: Tensor | None = None
        self.report_phase = report_phase
        self.threads = ThreadChooser(self.device_type)
        self._accumulate = accumulate
        self._clip_grad = dict(clip_grad or NO_CLIPPING)
        self.unfinished_iteration: int | None = None
        self.worker_death = ""
        self._folder = Path(folder)
        self._skipped = 0
        self._batches: Iterator[Any] | None = None

    def before_train(self) -> None:
        # By default every value of every metric is kept, hundreds of megabytes in a long run.
        self.storage.histories().default_factory = partial(HistoryBuffer, max_length=HISTORY)
        super().before_train()
        if self.unfinished_iteration is not None:
            self._finish_iteration(self.unfinished_iteration)

    def _finish_iteration(self, iteration: int) -> None:
        """Run the hooks that follow the checkpointer in an iteration; in the last iteration the checkpointer, too."""
        first = next(i for i, hook in enumerate(self._hooks) if isinstance(hook, BeforeCheckpoint))
        rest = self._hooks[first:]
        if iteration < self.max_iter - 1:
            rest = [hook for hook in rest if not isinstance(hook, (BeforeCheckpoint, PeriodicCheckpointer))]
        start = self.iter
        self.iter = self.storage.iter = iteration
        for hook in rest:
            hook.after_step()
        self.iter = self.storage.iter = start

    def after_train(self) -> None:
        self.iter = min(self.iter, self.max_iter)  # detectron2 counts one more if no iteration was left
        super().after_train()

    def run_step(self) -> None:
        start = time.perf_counter()
        self.report_phase("reading data")
        batches = [self._read() for _ in range(self._accumulate)]
        data_time = time.perf_counter() - start

        with self.threads.work():
            self._update(batches, data_time)
        self.report_phase("")

    def _update(self, batches: Sequence[Any], data_time: float) -> None:
        """Forward and backward passes, and the optimizer's step unless a number is not finite."""
        # Before the forward pass, which needs the memory of the last gradients.
        self.optimizer.zero_grad()
        self.grad_norm = None
        passes = [self._pass(*part) for part in self._parts(batches)]
        self.after_backward()
        self._clip_gradients()
        self.report_phase("the update")
        names = dict.fromkeys(name for part in passes for name in part.losses)
        losses = {name: sum(part.losses[name] for part in passes if name in part.losses) for name in names}
        if bad := self._record(losses, data_time):
            self._skip_step(bad, passes)
        elif self.grad_scaler:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        norm = self.grad_norm.item()  # here, as it waits for the device
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)

    def _parts(self, batches: Sequence[Any]) -> Iterator[tuple[Any, float, bool]]:
        """Each batch with the weight of its losses, and whether it is the last one."""
        weights = accumulation_weights(batches)
        for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
            yield batch, weight, number == len(batches)

    def _pass(self, batch: Any, weight: float, is_last: bool) -> "Pass":
        """Forward and backward pass of one batch. Processes exchange gradients in the last one only."""
        is_distributed = isinstance(self.model, nn.parallel.DistributedDataParallel)
        before = random_states()
        with self.model.no_sync() if is_distributed and not is_last else nullcontext():
            self.report_phase("the forward pass")
            try:
                losses = self._losses(self.model, batch)
            except ValueError as error:  # for example of the matcher, if costs are not finite
                self._explain_error(error, batch, before)
                raise
            self.report_phase("the backward pass")
            if weight != 1:
                losses = {name: value * weight for name, value in losses.items()}
            loss = sum(losses.values())
            (self.grad_scaler.scale(loss) if self.grad_scaler else loss).backward()
        return Pass(batch, before, {name: value.detach() for name, value in losses.items()})

    def _clip_gradients(self) -> None:
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.grad_norm = nn.utils.clip_grad_norm_(weights, **self._clip_grad)

    def _read(self) -> Any:
        if self._batches is None:
            self._batches = iter(self.data_loader)
        if isinstance(self.data_loader, ResumableLoader):  # it handles dead workers itself
            return next(self._batches)
        try:
            return next_batch(self._batches)
        except RuntimeError as error:
            if is_worker_death(error):
                self.worker_death = " ".join(str(error).split())
            raise

    def _losses(self, model: nn.Module, data: Any) -> Mapping[str, Tensor]:
        with self._autocast():
            losses = model(data)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, self.precision) if self.precision else nullcontext()

    def _record(self, losses: Mapping[str, Tensor], data_time: float) -> str:
        """Record the losses (mean over processes), their sum, and the time for data (of the slowest process).

        Returns:
            A message if a value is not finite in any process, the same in all processes; nothing is recorded then.
            "" if all values are finite.
        """
        # The scaler of float16 skips steps with gradients that are not finite.
        norm = [self.grad_norm] if self.grad_norm is not None and not self.grad_scaler else []
        values = [value.detach().float().reshape(()) for value in [*losses.values(), *norm]]
        gathered = comm.all_gather((torch.stack(values).tolist(), data_time))
        means = [sum(rank) / len(gathered) for rank in zip(*(values for values, _ in gathered), strict=True)]
        by_name = dict(zip(losses, means, strict=False))
        total = sum(by_name.values())
        if not math.isfinite(total):
            bad = ", ".join(f"{name}={value}" for name, value in by_name.items() if not math.isfinite(value))
            return f"the loss is not finite at iteration {self.iter}: {bad or total}"
        if norm and not math.isfinite(means[-1]):
            return f"the norm of the gradients is not finite at iteration {self.iter}: {means[-1]}"
        self._skipped = 0
        self.storage.put_scalar("data_time", max(seconds for _, seconds in gathered))
        self.storage.put_scalars(**{"total_loss": total, **by_name})
        return ""

    def _skip_step(self, bad: str, passes: Sequence["Pass"]) -> None:
        """Skip this step, or end the training if there were too many.

        Raises:
            FloatingPointError: in every process, if there were too many.
        """
        self._skipped += 1
        names = [name for rank in comm.all_gather([n for p in passes for n in image_names(p.batch)]) for name in rank]
        images = f"; images {', '.join(names)}" if names else ""
        if self._skipped <= self.skip_nonfinite:
            logger.warning("Skipped a step, %d in a row: %s%s", self._skipped, bad, images)
            if self.grad_scaler and self.grad_norm is not None:  # it expects an update after each unscaling
                self.grad_scaler.update()
            return
        # All passes in every process, as their criteria exchange numbers.
        found = comm.all_gather([self._bad_layer(part.batch, part.before) for part in passes])
        number = next((n for rank in found for n, layer in enumerate(rank) if layer), 0)
        layer = next((rank[number] for rank in found if rank[number]), "")
        what = f"{bad}{f', first in {layer}' if layer else ''}{images}"
        raise FloatingPointError(self._failure_message(what, passes[number].batch, passes[number].before))

    def _explain_error(self, error: ValueError, data: Any, before: dict[str, Any]) -> None:
        """Raise FloatingPointError if numbers that are not finite caused an error in the forward pass."""
        if layer := self._bad_layer(data, before):
            images = ", ".join(image_names(data))
            said = f"{layer} is not finite at iteration {self.iter}, so that {error}; images {images}"
            raise FloatingPointError(self._failure_message(said, data, before)) from error

    def _bad_layer(self, data: Any, before: dict[str, Any]) -> str:
        return first_bad_layer(self.model, lambda model: sum(self._losses(model, data).values()), before)

    def _failure_message(self, what: str, data: Any, before: dict[str, Any]) -> str:
        """Save the batch; return a message of what happened, where the batch is, and what to do."""
        path = self._folder / f"nonfinite_{self.iter:07d}_process_{comm.get_rank()}.pth"
        saved = f"the batch is in {path}"
        try:
            save_batch(data, path, iteration=self.iter, images=image_names(data), random_states=before)
        except OSError as error:
            saved = f"the batch is lost: {error}"
        return (
            f"{what}; {saved}; a lower learning rate, gradient clipping or full precision may help, and "
            "train.skip_nonfinite=N skips up to N such steps in a row"
        )

    def state_dict(self) -> dict[str, Any]:
        scale = {"grad_scaler": self.grad_scaler.state_dict()} if self.grad_scaler else {}
        return super().state_dict() | scale | self.threads.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.threads.load_state_dict(state_dict)
        if self.grad_scaler and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def accumulation_weights(batches: Sequence[Any]) -> list[float]:
    """Weights of the losses of several batches that make up one step.

    The criteria of DETR detectors divide the losses of a batch by its number of objects: the mean over the processes,
    and at least 1. A weight replaces this number by that of all batches. Batches whose objects are not known, as they
    are not lists of dicts with "instances", get equal weights. Every process calls it.

    Returns:
        One weight for each batch; [1] for a single batch.
    """
    if len(batches) == 1:
        return [1.0]
    counts = [_number_of_objects(batch) for batch in batches]
    gathered = comm.all_gather(counts)
    if any(count is None for rank in gathered for count in rank):
        return [1 / len(batches)] * len(batches)
    means = [sum(of_batch) / len(gathered) for of_batch in zip(*gathered, strict=True)]
    return [max(mean, 1.0) / max(sum(means), 1.0) for mean in means]


def _number_of_objects(batch: Any) -> int | None:
    if not isinstance(batch, list) or not all(isinstance(image, Mapping) and "instances" in image for image in batch):
        return None
    return sum(len(image["instances"]) for image in batch)


def grad_scaler(device_type: str) -> "torch.amp.GradScaler":
    """A scaler of float16 losses for any device."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device_type)
    return torch.cuda.amp.GradScaler(enabled=device_type == "cuda")  # torch < 2.3


def stride_gradients_as_parameters(model: nn.Module) -> None:
    """Give gradients the strides of their parameters where both describe the same memory layout.

    Gradients of a 1×1 convolution may be "channels last", which is the same layout with other strides.
    DistributedDataParallel then warns, and copies them more slowly.
    """

    def hook(shape: torch.Size, strides: tuple[int, ...], gradient: Tensor) -> Tensor | None:
        differs = gradient.stride() != strides
        return gradient.as_strided(shape, strides) if differs and gradient.is_contiguous() else None

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_contiguous():
            parameter.register_hook(partial(hook, parameter.shape, parameter.stride()))
