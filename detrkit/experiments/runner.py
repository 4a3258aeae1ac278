"""Run the trainings of an experiment, several at a time, on this machine or on a Dask cluster."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from pkgutil import resolve_name

import dask
import torch
from distributed import Client, Event, Future, wait
from tqdm import tqdm

import align_detr

from . import CONSOLE
from . import jobs as training_jobs
from .jobs import POLL_SECONDS, STOP, STOP_SECONDS, Job, cores
from .runs import CONFIG_FILE, Run, last_error, outcome, progress_of, read_result

TRAIN = [sys.executable, "-m", "align_detr", "train"]
ANALYZE = [sys.executable, "-m", "align_detr", "analyze"]
PACKAGES = str(Path(align_detr.__file__).parents[1])
RETRIES = 2
CONNECT_SECONDS = 30
# Dask's monitoring at its default rate takes a twentieth of a core from the trainings.
RARE_MONITORING = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
}


@dataclass(frozen=True)
class Runner:
    """Where trainings run.

    Attributes:
        jobs: trainings at a time on this machine.
        gpus: number of GPUs of this machine, one for each training; 0 leaves the device to the config.
        cluster: address of a Dask scheduler whose workers train instead, one training per thread. A worker started
            with `--resources GPU=N` provides N GPUs.
    """

    jobs: int
    gpus: int
    cluster: str | None = None

    def __str__(self) -> str:
        if self.cluster:
            return f"on the cluster at {self.cluster}"
        return f"{self.jobs} at a time with {max(1, cores() // self.jobs)} threads each"

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Connect to the cluster, or start one of threads in this process.

        Raises:
            ValueError: no such cluster, or it has no workers, or its workers cannot import this project.
        """
        if self.cluster is None:
            where = {"n_workers": 1, "threads_per_worker": self.jobs, "processes": False}
            where |= {name: "127.0.0.1:0" for name in ("dashboard_address", "worker_dashboard_address")}
            where |= {"resources": {"GPU": self.gpus} if self.gpus else None, "silence_logs": logging.ERROR}
        else:
            where = {"address": self.cluster, "timeout": CONNECT_SECONDS}
        try:
            with dask.config.set({} if self.cluster else RARE_MONITORING):
                client = Client(**where)
        except OSError as error:
            raise ValueError(f"no Dask scheduler answers at {self.cluster}") from error
        with client:
            try:
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except TimeoutError as error:
                raise ValueError(f"the cluster at {self.cluster} has no workers: start some (dask worker)") from error
            try:
                for call in (client.run_on_scheduler, client.run):
                    call(resolve_name, f"{training_jobs.__name__}:STOP")
            except ImportError as error:
                raise ValueError(
                    f"the cluster at {self.cluster} cannot import {error.name}: start scheduler and workers in an "
                    "environment where this project is installed"
                ) from error
            yield client


def choose_runner(jobs: int | None, runs: Sequence[Run], cluster: str | None) -> Runner:
    """Where to train: by default one training per GPU, or per core, at a time."""
    gpus = torch.cuda.device_count() if any(run.may_use_gpu for run in runs) else 0
    return Runner(max(1, min(jobs or gpus or cores(), len(runs))), gpus, cluster)


def train_all(runs: Sequence[Run], runner: Runner, after_each: Callable[[], object]) -> None:
    """Train all runs that are not finished, with a progress bar; `after_each` is called when a run ends.

    If the first run to end fails before its first iteration, the runs that have not begun are not started.
    """
    waiting = [run for run in runs if run.result is None]
    if finished := len(runs) - len(waiting):
        print(f"{finished} of {len(runs)} runs are finished already")
    if not waiting:
        return
    done_before, total = sum(map(progress_of, waiting)), sum(run.max_iter for run in waiting)
    start = time.monotonic()
    with (
        runner.client() as client,
        tqdm(total=total, initial=done_before, unit="it", smoothing=0, disable=None) as bar,
    ):
        stop, queue, active = Event(STOP, client), list(waiting), dict[Future, Run]()
        stop.clear()
        try:
            while queue or active:
                slots = sum(client.nthreads().values())  # each time, as workers come and go
                while queue and len(active) < slots:
                    run = queue.pop(0)
                    active[submit(client, run)] = run
                ended = [future for future in active if future.done()]
                bar.n = sum(run.max_iter if run.error else progress_of(run) for run in waiting)
                bar.set_postfix_str(", ".join(run.title for run in active.values()), refresh=True)
                for future in ended:
                    run = active.pop(future)
                    take_result(run, future)
                    after_each()
                    if run.error and not progress_of(run) and all(other.result is None for other in runs):
                        queue.clear()
                    left = sum(run.result is None and not run.error for run in waiting)
                    seconds = (time.monotonic() - start) / max(1, bar.n - done_before) * (total - bar.n)
                    eta = f"; {left} to go, about {timedelta(seconds=round(seconds))}" if left and queue else ""
                    _print_above(bar, f"{run.title}: {outcome(run)}{eta}")
                if not ended:
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            _print_above(bar, "stopping the trainings, with checkpoints")
            stop.set()
            wait(list(active), timeout=STOP_SECONDS + 2 * POLL_SECONDS)
            raise


def _print_above(bar: tqdm, text: str) -> None:
    bar.write(text)
    sys.stdout.flush()


def submit(client: Client, run: Run) -> Future:
    """Submit a training. If it is killed or its worker dies, Dask runs it again, and it resumes."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / CONFIG_FILE).write_text(run.fingerprint, encoding="utf-8")
    config = ["--config-file", str(run.setting.config)]
    commands = [[*TRAIN, *config, "--resume=auto", *run.overrides]]
    if run.analyze:
        outputs = ["--checkpoint", str(run.folder / "model_final.pth"), "--output", str(run.folder / "alignment")]
        commands.append([*ANALYZE, *config, *outputs, *run.overrides])
    workers = client.scheduler_info()["workers"].values()
    on_gpu = run.may_use_gpu and any(worker["resources"].get("GPU") for worker in workers)
    path = os.pathsep.join(filter(None, [PACKAGES, os.environ.get("PYTHONPATH")]))
    job = Job(commands, str(run.folder.resolve()), os.getcwd(), {**os.environ, "PYTHONPATH": path}, on_gpu)
    resources = {"GPU": 1} if on_gpu else None
    return client.submit(training_jobs.run_job, job, pure=False, retries=RETRIES, resources=resources)


def take_result(run: Run, future: Future) -> None:
    """Set `run.result` or `run.error` from a job that has ended."""
    if future.status != "finished":
        run.error = f"given up after {RETRIES + 1} tries: {future.exception() or future.status}"
        return
    code, seconds = future.result()
    if code == 0:
        run.result = read_result(run, seconds)
    else:
        run.error = last_error(run.folder / CONSOLE) or f"exit status {code}"
