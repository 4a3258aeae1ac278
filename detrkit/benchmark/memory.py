"""Peak memory of a workload."""

from __future__ import annotations

import gc
import multiprocessing
import re
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from detrex.layers import multi_scale_deform_attn as attention

from detrkit.runtime.allocation import resident_bytes

from .stopwatch import Stopwatch
from .workloads import Attention, Criterion, Workload

STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Memory:
    """Bytes in use: on a GPU those that PyTorch has allocated, on a CPU the resident memory of this process.

    Attributes:
        known: whether this system reports them.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.known = self.on_gpu or (device.type == "cpu" and RESET_PEAK.exists())

    def now(self) -> int:
        """Bytes in use."""
        return torch.cuda.memory_allocated(self.device) if self.on_gpu else resident_bytes()

    def peak(self) -> int:
        """Largest number of bytes in use since the last `reset`."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else _peak_resident_bytes()

    def reset(self) -> None:
        """Start a new peak."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            RESET_PEAK.write_text("5")  # resets VmHWM; see proc(5)


def _peak_resident_bytes() -> int:
    return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1])


def peak_bytes(workload: Workload, plain: bool, device: torch.device) -> int | None:
    """Peak memory of a run of `workload`, in bytes; None if this system does not report it.

    On a CPU the workload runs in a process of its own.

    Raises:
        OSError: that process died.
    """
    memory = Memory(device)
    if not memory.known:
        return None
    if memory.on_gpu:
        return _peak_bytes(workload, plain, memory)
    context = multiprocessing.get_context("spawn")  # a forked process would share this one's pages
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak_bytes, args=(sender, workload, plain, memory))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise OSError("the process that measured the memory died: it may have run out of memory") from None
    finally:
        process.join()


def _send_peak_bytes(sender: Connection, workload: Workload, plain: bool, memory: Memory) -> None:
    # Some modules are imported at their first use, which is not to count.
    layer = attention.MultiScaleDeformableAttention(8, 1, num_levels=1, num_points=1, batch_first=True)
    layer(
        torch.zeros(1, 1, 8), reference_points=torch.zeros(1, 1, 1, 2), spatial_shapes=torch.ones(1, 2).long()
    ).sum().backward()
    sender.send(_peak_bytes(workload, plain, memory))


def _peak_bytes(workload: Workload, plain: bool, memory: Memory) -> int:
    before = memory.now()
    run = workload.prepare(plain)
    if isinstance(workload, Criterion | Attention):  # their inputs do not count
        before = memory.now()
    memory.reset()
    for _ in range(2):  # the first one allocates the optimizer's state
        run(Stopwatch(memory.device))
    return memory.peak() - before
