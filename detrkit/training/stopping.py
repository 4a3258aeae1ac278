"""Stop a training early, with a checkpoint: on Ctrl-C, on SIGTERM, or if a data worker dies."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from detrkit.runtime.program import program

from .checkpoints import SafeCheckpointer
from .run_state import RunState

logger = logging.getLogger("detectron2.stopping")

SAME_SIGNAL = 1.0  # seconds in which a second SIGINT counts as the same one


class Interrupted(KeyboardInterrupt):
    """A signal, whose number is the argument, ended a training after it saved a checkpoint."""


class StopEarly(HookBase):
    """A hook that ends the training after the current iteration, with a checkpoint.

    Reasons are Ctrl-C, the SIGTERM that clusters send, and the death of a data worker. A second Ctrl-C ends it at once.

    Args:
        loader: the training data. After the death of a worker a `ResumableLoader` finishes the iteration. With another
            loader the checkpoint is of the iteration before, and only a run of one process saves one.
    """

    def __init__(self, checkpointer: SafeCheckpointer, state: RunState, loader: Iterable[Any]):
        self._checkpointer, self._state, self._loader = checkpointer, state, loader
        self._signal = 0
        self._asked_at = 0.0
        self._stopped = False

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM inside the block. Outside the main thread, where Python forbids it, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._process = os.getpid()
        outer = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in outer.items():
                signal.signal(number, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker, which the current iteration may need
            return
        if self._signal:  # a launcher repeats a signal that all processes have received
            if signum == signal.SIGINT and time.monotonic() - self._asked_at > SAME_SIGNAL:
                raise KeyboardInterrupt
            return
        self._signal, self._asked_at = signum, time.monotonic()
        if comm.is_main_process():
            print("\nstopping after this iteration, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)

    def after_step(self) -> None:
        signals, deaths = zip(*comm.all_gather((self._signal, getattr(self._loader, "worker_death", ""))), strict=True)
        if signum := max(signals):
            self._save()
            raise Interrupted(signum)
        if death := next(filter(None, deaths), ""):
            name = self._save()
            raise ChildProcessError(
                f"{death}; {name}.pth is the checkpoint of this iteration, --resume goes on; "
                "if memory ran out: fewer dataloader.train.num_workers, or smaller batches"
            )

    def _save(self) -> str:
        """Save a checkpoint of the current iteration; return its name."""
        self._stopped = True
        iteration = self.trainer.iter
        self._state.collect(complete=True)
        self._checkpointer.save(name := f"model_{iteration:07d}", iteration=iteration)
        return name

    def after_train(self) -> None:
        trainer = self.trainer
        if trainer.worker_death and trainer.iter > trainer.start_iter and comm.get_world_size() == 1:
            trainer.iter -= 1  # the last complete iteration
            self._save()
        if self._stopped:
            words = list(zip(sys.argv, sys.argv[1:], strict=False))
            options = [word for before, word in words if (before, word) != ("--resume", "auto")]
            options = [word for word in options if not word.startswith("--resume")]
            command = shlex.join([*program(), "--resume", *options])
            done = f"{self.trainer.iter + 1} of {self.trainer.max_iter}"
            logger.info("Stopped after %s iterations; add --resume to go on: %s", done, command)


@contextmanager
def sigterm_passed_on() -> Iterator[None]:
    """Pass SIGTERM on to the processes of the run, which this process has started."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
        raise Interrupted(signum)

    outer = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, outer)
