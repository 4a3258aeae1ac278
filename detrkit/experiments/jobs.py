"""One training as a job on a Dask worker, on this machine or another one.

Workers import this module, so it imports nothing that is slow to import.
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

from . import CONSOLE

STOP = "stop"  # the event that ends all trainings
STOP_SECONDS = 60  # for the iteration that is running, and its checkpoint
POLL_SECONDS = 0.2

_choosing_gpu = Lock()


class Killed(RuntimeError):
    """A signal ended the training, for example when memory ran out. Dask tries it again."""


@dataclass(frozen=True)
class Job:
    """The commands of one training.

    Attributes:
        commands: their words; each runs only if the one before it succeeded.
        folder: absolute path, the same on all machines; the output of the commands goes to CONSOLE in it.
        cwd: working directory of the commands.
        environment: environment variables of the process that submitted the job.
        on_gpu: whether the worker reserves one of its GPUs for the job.
    """

    commands: Sequence[Sequence[str]]
    folder: str
    cwd: str
    environment: Mapping[str, str]
    on_gpu: bool


def run_job(job: Job) -> tuple[int, float]:
    """Run the commands of a job; after a request to stop, none is started.

    Returns:
        The exit status of the last command that ran, and seconds.

    Raises:
        Killed: a signal ended a command without a request to stop.
    """
    worker, folder, begin = get_worker(), Path(job.folder), time.monotonic()
    with _locked(folder) as lock, _gpu(worker, job.on_gpu) as gpu, open(folder / CONSOLE, "wb") as console:
        threads = str(max(1, cores() // worker.state.nthreads))
        environment = {**job.environment, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **gpu}
        code = 0
        for words in job.commands:
            if code or stopping():
                break
            # In a new session, as Ctrl-C goes to the process that submitted the job, which passes it on.
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
    """Whether all trainings are to stop."""
    return Event(STOP).is_set()


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wait(process: subprocess.Popen) -> int:
    """Return the exit status. On a request to stop, interrupt the process, and kill it if it does not end in time."""
    interrupted_at = None
    while (code := process.poll()) is None:
        if interrupted_at is None and stopping():
            process.send_signal(signal.SIGINT)
            interrupted_at = time.monotonic()
        if interrupted_at is not None and time.monotonic() > interrupted_at + STOP_SECONDS:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return code


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Lock the folder. The training inherits the lock; if it outlives its worker, the next worker waits for it."""
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
def _gpu(worker: Worker, on_gpu: bool) -> Iterator[dict[str, str]]:
    """Reserve one of the worker's GPUs, and yield the environment variable that selects it; {} without a GPU."""
    if not on_gpu:
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
