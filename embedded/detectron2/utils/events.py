"""Metrics of a training: their storage, and the writers that print and save them."""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.history_buffer import HistoryBuffer

_current_storage: ContextVar[EventStorage] = ContextVar("event_storage")


def get_event_storage() -> EventStorage:
    """The storage of the innermost `with EventStorage():` block.

    Raises:
        LookupError: outside any such block.
    """
    storage = _current_storage.get(None)
    if storage is None:
        raise LookupError("metrics can only be recorded inside a `with EventStorage():` block")
    return storage


class EventStorage:
    """Scalars with their history, and images not yet written, of one training run.

    Used as a context manager, it is what `get_event_storage()` returns inside the block.
    """

    def __init__(self, start_iter: int = 0):
        self.iter = start_iter
        self._histories: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothed: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._vis_data: list[tuple[str, torch.Tensor | np.ndarray, int]] = []
        self._tokens: list[Any] = []

    def __enter__(self) -> EventStorage:
        self._tokens.append(_current_storage.set(self))
        return self

    def __exit__(self, *exc_info: object) -> None:
        _current_storage.reset(self._tokens.pop())

    @property
    def iteration(self) -> int:
        """The iteration that is running, from 0; the same as `iter`."""
        return self.iter

    def step(self) -> None:
        """Go on to the next iteration."""
        self.iter += 1

    def put_scalar(
        self, name: str, value: float | torch.Tensor, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Record a number.

        Args:
            smoothing_hint: whether writers should show the median of a window rather than this very value. It is
                a property of the name: every value of it must come with the same hint.
            cur_iter: the iteration it belongs to, the current one by default.
        """
        iteration, value = self.iter if cur_iter is None else cur_iter, float(value)
        if self._smoothed.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"{name} was recorded with smoothing_hint={not smoothing_hint} before")
        self._histories[name].update(value, iteration)
        self._latest[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float) -> None:
        """`put_scalar` for each keyword."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint, cur_iter)

    def put_image(self, img_name: str, img_tensor: torch.Tensor | np.ndarray) -> None:
        """Keep an image of shape (3, H, W), uint8 in [0, 255] or float in [0, 1], until the next write."""
        self._vis_data.append((img_name, img_tensor, self.iter))

    def history(self, name: str) -> HistoryBuffer:
        """Every value recorded under `name`.

        Raises:
            KeyError: nothing was recorded under that name.
        """
        if name not in self._histories:
            raise KeyError(f"no metric named {name}; there are: {', '.join(sorted(self._histories))}")
        return self._histories[name]

    def histories(self) -> Mapping[str, HistoryBuffer]:
        """The history of each name."""
        return self._histories

    def latest(self) -> Mapping[str, tuple[float, int]]:
        """The newest value of each name, and its iteration."""
        return self._latest

    def smoothing_hints(self) -> Mapping[str, bool]:
        """The smoothing hint of each name."""
        return self._smoothed

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of `name` belong to the `window_size` iterations that end with its newest value."""
        recent = self.history(name).values()[-window_size:]
        newest = recent[-1][1]
        return sum(iteration > newest - window_size for _, iteration in recent)

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like `latest()`, with the median over `window_size` iterations for metrics with a smoothing hint."""
        result = {}
        for name, (value, iteration) in self._latest.items():
            if self._smoothed[name]:
                value = float(self._histories[name].median(self.count_samples(name, window_size)))
            result[name] = (value, iteration)
        return result

    def clear_images(self) -> None:
        """Forget the images, once they are written."""
        self._vis_data = []

class EventWriter:
    """Writes metrics of the current storage, for example to a file. `write()` is called every few iterations."""

    def write(self) -> None:
        """Write the metrics recorded since the last call."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027 (optional)
        """Write the buffer, and close the file."""


def _is_auxiliary(name: str, names: set[str]) -> bool:
    """Whether `name` extends another metric's name, as the losses of intermediate layers do: `loss_bbox_dn_3`."""
    parts = name.split("_")
    return any("_".join(parts[:i]) in names for i in range(1, len(parts)))


def _memory_in_use() -> str | None:
    """Peak memory since the start: the GPU's where there is one, else what this process had resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 2**10
    return f"max_rss: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f}M"


class CommonMetricPrinter(EventWriter):
    """One line on progress: iteration, time left, losses, learning rate, seconds an iteration, memory.

    Of the losses it shows the total and those of the last layer. The others are in `metrics.json`.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration, and the clock then

    def _seconds_per_iteration(self, storage: EventStorage, iteration: int) -> float | None:
        """The median iteration, or until there is a timer's value the mean since the last line."""
        last, self._last_write = self._last_write, (iteration, time.perf_counter())
        if "time" in storage.histories():
            return storage.history("time").median(1000)
        return (self._last_write[1] - last[1]) / (iteration - last[0]) if last else None

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(self._window_size)
        iteration = max((i for _, i in latest.values()), default=-1)
        # At the end of the training, complete or not, every iteration may have had its line.
        if iteration == self._max_iter or iteration <= (self._last_write or (-1,))[0]:
            return
        values = {name: value for name, (value, _) in latest.items()}
        losses = {name for name in values if "loss" in name}
        shown = sorted(name for name in losses if not _is_auxiliary(name, losses))
        shown.sort(key=lambda name: name != "total_loss")

        fields = [f"iter: {iteration + 1}" + (f"/{self._max_iter}" if self._max_iter else "")]
        seconds = self._seconds_per_iteration(storage, iteration)
        if self._max_iter and seconds is not None:
            left = seconds * (self._max_iter - iteration - 1)
            storage.put_scalar("eta_seconds", left, smoothing_hint=False, cur_iter=iteration)
            fields.append(f"eta: {datetime.timedelta(seconds=int(left))}")
        fields += [f"{name}: {values[name]:.4g}" for name in shown]
        fields += [f"lr: {values['lr']:.5g}"] if "lr" in values else []
        fields += [f"{name.partition('_')[0]}: {values[name]:.4f}s" for name in ("time", "data_time") if name in values]
        fields += [_memory_in_use()]
        self.logger.info("  ".join(filter(None, fields)))


class JSONWriter(EventWriter):
    """Appends to a file one JSON object a line and iteration: `{"iteration": 19, "total_loss": 7.1, "lr": 1e-4}`.

    A number that is not finite is written as null. A line that a crash cut short is closed before the next one.
    """

    def __init__(self, json_file: str | os.PathLike, window_size: int = 20):
        path = Path(json_file)
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a")
        if torn:
            self._file.write("\n")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        rows: defaultdict[int, dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                rows[iteration][name] = value if math.isfinite(value) else None
        for iteration in sorted(rows):
            self._file.write(json.dumps({"iteration": iteration, **rows[iteration]}, sort_keys=True) + "\n")
            self._last_write = iteration
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Scalars and images for TensorBoard. The folder is made at the first write."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any):
        self._log_dir, self._window_size, self._kwargs = log_dir, window_size, kwargs
        self._summary = None
        self._last_write = -1

    def write(self) -> None:
        if self._summary is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only some runs write

            self._summary = SummaryWriter(self._log_dir, **self._kwargs)
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._summary.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest
        for name, image, iteration in storage._vis_data:
            self._summary.add_image(name, image, iteration)
        storage.clear_images()

    def close(self) -> None:
        if self._summary is not None:
            self._summary.close()
