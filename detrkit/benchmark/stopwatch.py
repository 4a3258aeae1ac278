"""Time, memory and bandwidth of what runs on a device."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Run = Callable[["Stopwatch"], None]  # does something, and marks its phases

STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
COPIES = 20  # in a row, where one takes as long as starting it


class Stopwatch:
    """Seconds since the mark before, added up by name. Every mark waits for the device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.start()

    def start(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = self._now()

    def mark(self, name: str, count: int = 1) -> None:
        """`count`: how often it was done; the time of one is noted."""
        now = self._now()
        self.seconds[name] += (now - self._last) / count
        self._last = now

    def _now(self) -> float:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        return time.perf_counter()


@dataclass
class Timing:
    """Seconds of each repeat, by phase."""

    repeats: list[dict[str, float]] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(map(_total, self.repeats))

    @property
    def spread(self) -> float:
        """The interquartile range."""
        if len(self.repeats) < 2:
            return 0.0
        low, _, high = statistics.quantiles(map(_total, self.repeats), n=4, method="inclusive")
        return high - low

    @property
    def phases(self) -> dict[str, float]:
        """Medians."""
        return {name: statistics.median(times[name] for times in self.repeats) for name in self.repeats[0]}

    def summary(self) -> dict[str, Any]:
        return {"median_s": self.median, "iqr_s": self.spread, "phases_s": self.phases}


def _total(phases: dict[str, float]) -> float:
    return sum(phases.values())


def by_turns(runs: Mapping[str, Run], device: torch.device, repeats: int) -> dict[str, Timing]:
    """Run one after the other, `repeats` times after a warm-up, so that whatever else the machine does hits all."""
    watch = Stopwatch(device)
    timings = {name: Timing() for name in runs}
    for turn in range(1 + repeats):
        for name, run in runs.items():
            gc.collect()
            watch.start()
            run(watch)
            if turn:
                timings[name].repeats.append(dict(watch.seconds))
    return timings


class Memory:
    """Bytes that are in use on a device: of a GPU those that PyTorch has handed out, else this process's resident ones.

    Attributes:
        known: whether they can be told here.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.known = self.on_gpu or (device.type == "cpu" and RESET_PEAK.exists())

    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.on_gpu else _status("VmRSS")

    def peak(self) -> int:
        """The most since the last `reset`."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else _status("VmHWM")

    def reset(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            RESET_PEAK.write_text("5")  # as proc(5) has it


def _status(name: str) -> int:
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1])


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that copying `size` bytes, again and again, reads and writes: the caches', if they hold them."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy(watch: Stopwatch) -> None:
        for _ in range(COPIES):
            target.copy_(source)
        watch.mark("copy", COPIES)

    return 2 * size / by_turns({"copy": copy}, device, repeats=5)["copy"].median
