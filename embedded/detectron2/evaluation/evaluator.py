"""Evaluation loop, and interface of evaluators."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from detectron2.utils.comm import get_world_size, is_main_process, synchronize
from torch import nn

logger = logging.getLogger(__name__)

WARMUP_BATCHES = 3  # not timed: they choose kernels, fill caches and start workers
REPORT_SECONDS = 5


class DatasetEvaluator:
    """Collect a model's outputs over a dataset, and compute metrics.

    `inference_on_dataset` calls `reset` once, `process` for every batch and `evaluate` at the end. Subclasses define
    the methods that they need.
    """

    def reset(self) -> None:
        """Delete the outputs of earlier batches."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add a batch: the data loader's dicts and the model's output dicts, in the same order."""

    def evaluate(self) -> Mapping[str, Any] | None:
        """Return `{task: {metric: value}}`; None or {} on all processes except the main one."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators for one pass over the data; their results are merged."""

    def __init__(self, evaluators: Iterable[DatasetEvaluator]):
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict:
        """Merge the results; raise ValueError if two evaluators report the same task."""
        merged: OrderedDict = OrderedDict()
        for evaluator in self._evaluators:
            results = evaluator.evaluate()  # call it on every process: it may gather from all
            if not is_main_process() or results is None:
                continue
            if repeated := merged.keys() & results.keys():
                raise ValueError(f"two evaluators report results named {', '.join(sorted(repeated))}")
            merged.update(results)
        return merged


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Set `model` to eval mode inside the block; restore the mode of every submodule on exit.

    Submodules may have different modes, such as frozen parts in eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Stopwatch:
    """Sum of the seconds between `lap` calls, by name."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.seconds = {"data": 0.0, "model": 0.0, "evaluator": 0.0}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now

    def describe(self, images: int) -> str:
        """Return text such as `0.1234 s/image (data 0.0012, model 0.1201, evaluator 0.0021)`."""
        parts = ", ".join(f"{name} {seconds / images:.4f}" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()) / images:.4f} s/image ({parts})"


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))


def inference_on_dataset(
    model: Callable[[list[dict]], list[dict]],
    data_loader: Iterable[list[dict]],
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> Mapping[str, Any]:
    """Run `model` on `data_loader` without gradients, and return the results of `evaluator`.

    Args:
        model: called with a batch of dataset dicts; returns one dict per image. A module is in eval mode meanwhile.
        data_loader: a sized iterable of batches: this process's share.
        evaluator: an object with the methods of DatasetEvaluator, or a list of them; None only times the model.
        callbacks: functions without arguments by name: `on_start`, `before_inference` and `after_inference` (around
            each call of the model), `on_end`.

    Returns:
        The evaluator's results; {} if it returns None.
    """
    if evaluator is None or isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(evaluator or [])
    hooks = callbacks or {}

    def notify(moment: str) -> None:
        if moment in hooks:
            hooks[moment]()

    batches = len(data_loader)
    logger.info("Start inference on %d batches, %d process(es)", batches, get_world_size())
    evaluator.reset()
    warmup = min(WARMUP_BATCHES, batches - 1)
    images = timed_images = 0
    started = reported = time.perf_counter()
    with inference_context(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
        notify("on_start")
        watch = _Stopwatch()
        for index, inputs in enumerate(data_loader):
            if index == warmup:
                watch.restart()
                timed_images = 0
            else:
                watch.lap("data")
            notify("before_inference")
            outputs = model(inputs)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # otherwise its time would count as the evaluator's
            notify("after_inference")
            watch.lap("model")
            evaluator.process(inputs, outputs)
            watch.lap("evaluator")

            images += len(inputs)
            timed_images += len(inputs)
            if index >= warmup and time.perf_counter() - reported >= REPORT_SECONDS:
                reported = time.perf_counter()
                left = sum(watch.seconds.values()) / (index + 1 - warmup) * (batches - index - 1)
                speed = watch.describe(timed_images)
                logger.info("Inference on batch %d/%d. %s. ETA %s", index + 1, batches, speed, _duration(left))
        notify("on_end")

    if timed_images:
        elapsed = _duration(time.perf_counter() - started)
        logger.info("Inference on %d images took %s: %s", images, elapsed, watch.describe(timed_images))
    synchronize()
    results = evaluator.evaluate()
    return {} if results is None else results
