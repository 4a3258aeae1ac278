"""Choose the number of CPU threads by measurement.

PyTorch's threads wait for each other many times in a step. If one of them shares its core with another process, all of
them wait for it: two threads next to a busy process on two cores are three times slower than one.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from detectron2.utils import comm

logger = logging.getLogger("detectron2.threads")

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WARM_UP = 2  # pieces of work before the first measurement
ROUNDS = 4  # measurements of each number of threads, in turn
WORTH = 0.95  # more threads are used if they take less than this share of the time of one thread
DRIFT = 1.5  # measure again if the median time grows by this factor
RECENT = 12  # pieces of work whose median time is compared


@contextmanager
def number_of_threads_kept() -> Iterator[None]:
    """Restore, on exit, the number of CPU threads of the process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


class ThreadChooser:
    """Choose between one thread and all of them by timing work of about equal size, such as training steps.

    Nothing is measured on a GPU, in a run of several processes, or if `OMP_NUM_THREADS` or `MKL_NUM_THREADS` is set.

    Args:
        device: where the work runs.

    Attributes:
        chosen: the number of threads; None while it is measured.
    """

    def __init__(self, device: str | torch.device):
        self._most = torch.get_num_threads()
        is_fixed = any(os.environ.get(name) for name in VARIABLES)
        is_alone = torch.device(device).type == "cpu" and comm.get_world_size() == 1
        self._may_change = is_alone and not is_fixed and self._most > 1
        self.chosen: int | None = None if self._may_change else self._most
        self._seconds: dict[int, list[float]] = {self._most: [], 1: []}
        self._usual = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._done = 0

    @contextmanager
    def work(self) -> Iterator[None]:
        """Run a piece of work with the chosen number of threads, or the next one to measure."""
        if not self._may_change:
            yield
            return
        threads = self.chosen or self._next()
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        begin = time.perf_counter()
        yield
        self._record(threads, time.perf_counter() - begin)

    def _next(self) -> int:
        count = self._done - WARM_UP
        return self._most if count < 0 or count % 2 == 0 else 1

    def _record(self, threads: int, seconds: float) -> None:
        self._done += 1
        if self.chosen is None:
            if self._done > WARM_UP:
                self._seconds[threads].append(seconds)
            if len(self._seconds[1]) == ROUNDS:
                self._choose()
            return
        self._recent.append(seconds)
        if self._usual and len(self._recent) == RECENT and median(self._recent) > DRIFT * self._usual:
            self._start_again()

    def _choose(self) -> None:
        one, most = median(self._seconds[1]), median(self._seconds[self._most])
        self.chosen = self._most if most < WORTH * one else 1
        self._usual = min(one, most)
        torch.set_num_threads(self.chosen)
        logger.info(
            "%d thread(s): %.3g s with %d threads, %.3g s with one; OMP_NUM_THREADS sets another number",
            self.chosen,
            most,
            self._most,
            one,
        )

    def _start_again(self) -> None:
        if self.chosen == 1:  # another process slows down several threads even more
            self._usual = median(self._recent)
            self._recent.clear()
            return
        self.chosen, self._done = None, WARM_UP
        self._seconds = {self._most: [], 1: []}
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """The number of threads. An exact resume needs it, as rounding depends on it."""
        return {"threads": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Use the number of threads of the resumed run, unless `OMP_NUM_THREADS` is set."""
        threads = state.get("threads")
        if threads is None:
            return
        if self._may_change:
            self.chosen, self._may_change = threads, False
            torch.set_num_threads(threads)
            logger.info("%d thread(s), as before; OMP_NUM_THREADS sets another number", threads)
        elif threads != torch.get_num_threads():
            logger.warning("%d threads now, %d before: rounding may differ", torch.get_num_threads(), threads)
