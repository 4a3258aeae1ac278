"""One training as a job, carried out on whichever machine Dask puts it.

All of it runs there, so it imports nothing that is slow to import.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from distributed import Event, Worker, get_worker

STOP = "stop"  # the event that ends all trainings
STOP_SECONDS = 60  # for the iteration that is running, and its checkpoint
POLL_SECONDS = 0.2
CONSOLE = "console.txt"  # in a run's folder

_choosing_gpu = Lock()


class Killed(RuntimeError):
    """A training that did not end by itself: out of memory, or killed with its machine. Worth another try."""


@dataclass(frozen=True)
class Job:
    """Commands that make one training.

    Attributes:
        commands: their words; each is called only if the one before succeeded.
        folder: absolute, seen by all machines; their output goes to CONSOLE in it.
        cwd: where they run.
        environment: of the machine that asked.
        on_gpu: whether the worker lends it a GPU of its own.
    """

    commands: Sequence[Sequence[str]]
    folder: str
    cwd: str
    environment: Mapping[str, str]
    on_gpu: bool


def carry_out(job: Job) -> tuple[int, float]:
    """The exit status of the last command that ran, and seconds. Nothing is run once all are to stop.

    Raises:
        Killed: a signal ended a command, though nobody asked to stop.
    """
    worker, folder, begin = get_worker(), Path(job.folder), time.monotonic()
    with _alone_in(folder) as lock, _gpu(worker, job.on_gpu) as gpu, open(folder / CONSOLE, "wb") as console:
        threads = str(max(1, cores() // worker.state.nthreads))
        environment = {**job.environment, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **gpu}
        code = 0
        for words in job.commands:
            if code or stopping():
                break
            # A session of its own: Ctrl-C is for the process that asked, which passes it on.
            process = subprocess.Popen(
                list(words),
                stdout=console,
                stderr=subprocess.STDOUT,
                cwd=job.cwd,
                env=environment,
                start_new_session=True,
                pass_fds=[lock],
            )
            code = _wait(process)
    if code < 0 and not stopping():
        raise Killed(f"killed by {signal.Signals(-code).name}")
    return code, time.monotonic() - begin


def stopping() -> bool:
    return Event(STOP).is_set()


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wait(process: subprocess.Popen) -> int:
    """The exit status; once all are to stop, lets it save a checkpoint and end, and ends it if it does not."""
    told = None
    while (code := process.poll()) is None:
        if told is None and stopping():
            process.send_signal(signal.SIGINT)
            told = time.monotonic()
        if told is not None and time.monotonic() > told + STOP_SECONDS:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return code


@contextmanager
def _alone_in(folder: Path) -> Iterator[int]:
    """A lock on the folder, which the training inherits: one that outlived its worker is waited for, not doubled."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        while not stopping():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL_SECONDS)
        yield file.fileno()


@contextmanager
def _gpu(worker: Worker, wanted: bool) -> Iterator[dict[str, str]]:
    """The variable that leaves one of the worker's GPUs to a training, while no other has it."""
    if not wanted:
        yield {}
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = int(worker.state.total_resources["GPU"])
    with _choosing_gpu:
        if not hasattr(worker, "free_gpus"):
            worker.free_gpus = visible.split(",")[:number] if visible else list(map(str, range(number)))
        gpu = worker.free_gpus.pop(0)
    try:
        yield {"CUDA_VISIBLE_DEVICES": gpu}
    finally:
        with _choosing_gpu:
            worker.free_gpus.append(gpu)
