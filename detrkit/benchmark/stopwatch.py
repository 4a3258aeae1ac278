"""Time and bandwidth of computations on a device."""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Measurement = Callable[["Stopwatch"], None]  # runs something once, and marks its phases

COPIES = 20  # in a row, where one takes as long as starting it


class Stopwatch:
    """Seconds between marks, summed by name. Every mark waits for the device.

    Args:
        clock: in seconds; `time.process_time` counts the processor time of this process.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self.device, self._clock = device, clock
        self.start()

    def start(self) -> None:
        """Forget all marks, and start from now."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = self._now()

    def mark(self, name: str, count: int = 1) -> None:
        """Add the time since the last mark to `name`, divided by `count`, the number of repeats in it."""
        now = self._now()
        self.seconds[name] += (now - self._last) / count
        self._last = now

    def _now(self) -> float:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        return self._clock()


@dataclass
class Timing:
    """Seconds of each repeat, by phase, and seconds of processor time of each repeat."""

    repeats: list[dict[str, float]] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the totals."""
        return statistics.median(map(_total, self.repeats))

    @property
    def spread(self) -> float:
        """Interquartile range of the totals."""
        if len(self.repeats) < 2:
            return 0.0
        low, _, high = statistics.quantiles(map(_total, self.repeats), n=4, method="inclusive")
        return high - low

    @property
    def phases(self) -> dict[str, float]:
        """Median of each phase."""
        return {name: statistics.median(times[name] for times in self.repeats) for name in self.repeats[0]}

    def summary(self) -> dict[str, Any]:
        """Median, interquartile range, phases and median processor time, in seconds."""
        processor = statistics.median(self.processor)
        return {"median_s": self.median, "iqr_s": self.spread, "phases_s": self.phases, "processor_s": processor}


def _total(phases: dict[str, float]) -> float:
    return sum(phases.values())


def by_turns(
    runs: Mapping[str, Measurement],
    device: torch.device,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time several measurements in turn, `repeats` times after a warm-up, so that other load hits all."""
    watch = Stopwatch(device, clock)
    timings = {name: Timing() for name in runs}
    for turn in range(1 + repeats):
        for name, run in runs.items():
            gc.collect()
            watch.start()
            start = time.process_time()
            run(watch)
            if turn:
                timings[name].repeats.append(dict(watch.seconds))
                timings[name].processor.append(time.process_time() - start)
    return timings


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second, read and written, of copying `size` bytes repeatedly; if a cache holds them, its bandwidth."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy(watch: Stopwatch) -> None:
        for _ in range(COPIES):
            target.copy_(source)
        watch.mark("copy", COPIES)

    return 2 * size / by_turns({"copy": copy}, device, repeats=5)["copy"].median
