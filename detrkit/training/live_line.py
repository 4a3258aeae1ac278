"""One line at the foot of a terminal that shows the progress of a training."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from datetime import timedelta

import torch
from detectron2.engine import HookBase

from detrkit.runtime.logs import terminal_handlers

SECONDS = 0.2  # between two updates
WINDOW = 20  # iterations over which medians are shown
PRINTER = "detectron2.utils.events"  # logs the same figures every `train.log_period` iterations
ERASE = "\r\x1b[K"


class LiveLine(HookBase):
    """Iteration, time left, losses, learning rate, seconds per iteration and memory; nothing if stdout is no terminal.

    Of the losses it shows the sum and those of the last decoder layer, as many as fit. The logged lines with the same
    figures then go to the log file only. Register it after the hooks whose metrics it shows.
    """

    def __init__(self) -> None:
        self._drawn_at = float("-inf")
        self._visible = False
        self._handlers: list[logging.Handler] = []

    def before_train(self) -> None:
        if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
            return
        self._handlers = [handler for handler in terminal_handlers() if handler.stream is sys.stdout]
        for handler in self._handlers:
            handler.addFilter(self._make_way)

    def after_step(self) -> None:
        now = time.monotonic()
        if not self._handlers or now - self._drawn_at < SECONDS:
            return
        self._drawn_at = now
        width = shutil.get_terminal_size().columns - 1  # a full line would wrap
        sys.stdout.write(ERASE + "  ".join(self._fields())[:width])
        sys.stdout.flush()
        self._visible = True

    def after_train(self) -> None:
        self._erase()
        for handler in self._handlers:
            handler.removeFilter(self._make_way)
        self._handlers = []

    def _make_way(self, record: logging.LogRecord) -> bool:
        """A filter that erases the line before a record, and drops the records that repeat it."""
        if record.name == PRINTER:
            return False
        self._erase()
        return True

    def _erase(self) -> None:
        if self._visible:
            sys.stdout.write(ERASE)
            sys.stdout.flush()
            self._visible = False

    def _fields(self) -> list[str]:
        """The fields of the line, the most important ones first: a narrow terminal cuts off the others."""
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        latest = self.trainer.storage.latest_with_smoothing_hint(WINDOW)
        values = {name: value for name, (value, _) in latest.items()}
        fields = [f"{done}/{total} ({done / total:.0%})"]
        if "time" in values:
            seconds = self.trainer.storage.history("time").median(1000)
            fields.append(f"eta {timedelta(seconds=round(seconds * (total - done)))}")
        fields += [f"{name.removeprefix('loss_')} {values[name]:.3g}" for name in main_losses(values)]
        fields += [f"lr {values['lr']:.2g}"] if "lr" in values else []
        fields += [f"{values['time']:.3f} s/iter"] if "time" in values else []
        fields += [f"data {values['data_time']:.3f} s"] if "data_time" in values else []
        return [*fields, *memory()]


def main_losses(names) -> list[str]:
    """The total loss, and those of the last decoder layer: not `loss_bbox_3` or `loss_bbox_dn`, which extend a name."""
    losses = {name for name in names if name.startswith("loss_")}
    last_layer = [name for name in sorted(losses) if not any(name.startswith(f"{other}_") for other in losses)]
    return [name for name in ("total_loss",) if name in names] + last_layer


def memory() -> list[str]:
    """Peak memory of the GPU, or of this process if no GPU is in use; in a list that is empty if it is unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return [f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB"]
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    unit = 1 if sys.platform == "darwin" else 2**10
    return [f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GB"]
