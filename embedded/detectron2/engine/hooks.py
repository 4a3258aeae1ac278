"""Hooks of the training loop: timing, schedules, checkpoints, evaluation, metrics."""

from __future__ import annotations

import logging
import math
import operator
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler

from .train_loop import HookBase

logger = logging.getLogger(__name__)

__all__ = [
    "BestCheckpointer",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]


class IterationTimer(HookBase):
    """Records seconds an iteration as `time`, without what the other hooks take. Register it first.

    Args:
        warmup_iter: iterations at the start, when kernels and memory are set up, that are not counted.
    """

    def __init__(self, warmup_iter: int = 3):
        self._warmup_iter = warmup_iter
        self._seconds: list[float] = []

    def before_train(self) -> None:
        self._begin = time.perf_counter()

    def before_step(self) -> None:
        self._step_begin = time.perf_counter()

    def after_step(self) -> None:
        if self.trainer.iter - self.trainer.start_iter < self._warmup_iter:
            return
        seconds = time.perf_counter() - self._step_begin
        self._seconds.append(seconds)
        self.trainer.storage.put_scalar("time", seconds)

    def after_train(self) -> None:
        if not self._seconds:
            return
        total, stepping = time.perf_counter() - self._begin, sum(self._seconds)
        logger.info(
            "%.4f s an iteration (%d iterations in %s); %s in all, with evaluation and checkpoints",
            stepping / len(self._seconds),
            len(self._seconds),
            timedelta(seconds=round(stepping)),
            timedelta(seconds=round(total)),
        )


class LRScheduler(HookBase):
    """Sets the learning rates of each iteration, and records that of the group with most parameters as `lr`.

    Args:
        optimizer: the trainer's by default.
        scheduler: an fvcore ParamScheduler, whose value at iter / max_iter multiplies each group's initial rate; it
            needs no state to resume. Or a torch scheduler, which is stepped once an iteration.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: ParamScheduler | torch.optim.lr_scheduler.LRScheduler | None = None,
    ):
        self._optimizer = optimizer
        self.scheduler = scheduler
        self._by_progress = isinstance(scheduler, ParamScheduler)

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        for group in self._optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._group = self.get_best_param_group_id(self._optimizer)

    def before_step(self) -> None:
        if self._by_progress:
            multiplier = self.scheduler(self.trainer.iter / self.trainer.max_iter)
            for group in self._optimizer.param_groups:
                group["lr"] = group["initial_lr"] * multiplier

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The first group with the initial learning rate that most parameters have."""
        rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        votes: Counter[float] = Counter()
        for rate, group in zip(rates, optimizer.param_groups, strict=True):
            votes[rate] += len(group["params"])
        return rates.index(votes.most_common(1)[0][0])

    def after_step(self) -> None:
        self.trainer.storage.put_scalar(
            "lr", self._optimizer.param_groups[self._group]["lr"], smoothing_hint=False
        )
        if not self._by_progress:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._by_progress else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._by_progress:
            self.scheduler.load_state_dict(state_dict)


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """Saves `model_<iteration>` every `period` iterations, and `model_final` at the end.

    The newest `max_to_keep` of the former stay, those from before a resume included; None keeps all.
    """

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter
        if self.trainer.start_iter > 0:  # resumed: what the run saved before counts towards max_to_keep
            name = re.compile(rf"{re.escape(self.file_prefix)}_(\d{{7}})\.pth")
            files = [Path(file) for file in self.checkpointer.get_all_checkpoint_files()]
            self.recent_checkpoints = sorted(str(file) for file in files if name.fullmatch(file.name))

    def after_step(self) -> None:
        self.step(self.trainer.iter)


def _is_due(trainer: Any, period: int) -> bool:
    """Return whether a task of this period is due after the current iteration; `after_train` handles the last one."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


def _is_complete(trainer: Any) -> bool:
    """Return whether the training ended without an exception; for `after_train`."""
    return trainer.iter >= trainer.max_iter


class EvalHook(HookBase):
    """Evaluates every `eval_period` iterations (0: never) and at the end, and records the results as metrics.

    Args:
        eval_function: called without arguments by every process; returns numbers, possibly in nested dicts, which
            become metrics such as `bbox/AP`.
        eval_after_train: whether to evaluate at the end of a complete training.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Any], eval_after_train: bool = True):
        self._period = eval_period
        self._function = eval_function
        self._eval_after_train = eval_after_train

    def _evaluate(self) -> None:
        results = self._function() or {}
        if not isinstance(results, Mapping):
            raise ValueError(f"an eval function returns a dict of numbers, not {results!r}")
        for name, value in _flatten(results).items():
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        comm.synchronize()  # the main process may have taken longer over the results

    def after_step(self) -> None:
        if _is_due(self.trainer, self._period):
            self._evaluate()

    def after_train(self) -> None:
        if self._eval_after_train and _is_complete(self.trainer):
            self._evaluate()


def _flatten(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
            continue
        try:
            flat[prefix + name] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"evaluation returned {prefix}{name}={value!r}, which is not a number") from None
    return flat


class BestCheckpointer(HookBase):
    """Saves the model whenever a metric is better than before. Register it after `EvalHook`.

    Args:
        eval_period: the period of the evaluation.
        val_metric: the name of the metric, such as `bbox/AP`.
        mode: whether "max" or "min" is best.
        file_prefix: the name of the file, without its ending.

    Attributes:
        best_metric, best_iter: the best value so far and its iteration; None before there is one.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ):
        if mode not in ("max", "min"):
            raise ValueError(f'mode is "{mode}", but must be "max" or "min"')
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = val_metric
        self._better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self._metric, (math.nan, None))
        if iteration != self.trainer.iter:
            logger.warning("There is no new value of %s: cannot tell whether this model is the best", self._metric)
            return
        if math.isnan(value) or self.best_metric is not None and not self._better(value, self.best_metric):
            return
        self.best_metric, self.best_iter = value, iteration
        last_done = min(self.trainer.iter, self.trainer.max_iter - 1)
        self._checkpointer.save(self._file_prefix, iteration=last_done)
        logger.info("Best %s so far: %.4f, saved as %s", self._metric, value, self._file_prefix)

    def after_step(self) -> None:
        if _is_due(self.trainer, self._period):
            self._check()

    def after_train(self) -> None:
        if _is_complete(self.trainer):
            self._check()


class PeriodicWriter(HookBase):
    """Call the writers every `period` iterations and at the end. Register it after the hooks of their metrics."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20):
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()
            writer.close()
