"""Many trainings, a few at a time, here or on a cluster: what `align-detr ablate` and `compare` have in common.

Each is an `align-detr train` in a folder of its own. Finished ones are kept, others go on from their last
checkpoint; a folder that holds a run of another config is refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from pkgutil import resolve_name

import dask
import torch
from detectron2.config import LazyConfig
from distributed import Client, Event, Future, wait
from matplotlib.figure import Figure
from omegaconf import DictConfig
from tqdm import tqdm

import align_detr
from align_detr._platform import EMBEDDED_ROOT, describe
from detrkit.config.load import load_config
from detrkit.config.overrides import quoted
from detrkit.experiments import jobs as training_jobs
from detrkit.experiments.jobs import CONSOLE, POLL_SECONDS, STOP, STOP_SECONDS, Job, cores
from detrkit.runtime.files import atomic_write
from detrkit.runtime.program import program

ROOT = EMBEDDED_ROOT.parent
TRAIN = [sys.executable, "-m", "align_detr", "train"]
ANALYZE = [sys.executable, "-m", "align_detr", "analyze"]
PACKAGES = str(Path(align_detr.__file__).parents[1])

METRIC = "bbox/AP"
METRICS = {  # what is kept of a run: its name in metrics.json; its name and digits in a table
    METRIC: ("AP", 2),
    "bbox/AP50": ("AP50", 2),
    "bbox/AP75": ("AP75", 2),
    "alignment/boxes_per_object": ("boxes per object", 2),
    "alignment/best_in_top_n": ("BR in top N", 3),
    "alignment/pearson": ("Pearson", 3),
    "alignment/spearman": ("Spearman", 3),
    "layers/same_query": ("same query", 3),
}
LAYERS = "layers/"  # metrics of all decoder layers, which `align-detr analyze` finds
RETRIES = 2
CONNECT_SECONDS = 30
# By default Dask looks at itself so often that it takes a twentieth of a core from the trainings.
SELDOM = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
}
BEGUN, DONE = "run_config.yaml", "run_result.json"


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: also of its folder.
        config: file to train.
        changes: `(key, value)` of what differs from the config, as written on the command line.
    """

    name: str
    config: Path
    changes: tuple[tuple[str, str], ...] = ()


@dataclass
class Run:
    """A training of a setting.

    Attributes:
        analyze: whether to look at all decoder layers of the trained model as well.
    """

    setting: Setting
    seed: int
    folder: Path
    overrides: list[str]
    max_iter: int
    fingerprint: str
    may_use_gpu: bool
    analyze: bool = False
    result: dict | None = None
    error: str = ""

    @property
    def title(self) -> str:
        return f"{self.setting.name}, seed {self.seed}"


@dataclass(frozen=True)
class Runner:
    """Where trainings run.

    Attributes:
        jobs: how many at a time on this machine.
        gpus: of this machine, to share out; 0 leaves the choice of device to the config.
        cluster: address of a Dask scheduler, whose workers run them instead, as many at a time as they have threads.
            Started with `--resources GPU=N`, a worker lends N GPUs.
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
        """
        Raises:
            ValueError: there is no such cluster, or it has no workers, or not this project.
        """
        if self.cluster is None:
            where = {"n_workers": 1, "threads_per_worker": self.jobs, "processes": False}
            where |= {name: "127.0.0.1:0" for name in ("dashboard_address", "worker_dashboard_address")}
            where |= {"resources": {"GPU": self.gpus} if self.gpus else None, "silence_logs": logging.ERROR}
        else:
            where = {"address": self.cluster, "timeout": CONNECT_SECONDS}
        try:
            with dask.config.set({} if self.cluster else SELDOM):
                client = Client(**where)
        except OSError as problem:
            raise ValueError(f"no Dask scheduler answers at {self.cluster}") from problem
        with client:
            try:
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except TimeoutError as problem:
                raise ValueError(f"the cluster at {self.cluster} has no workers: start some (dask worker)") from problem
            try:
                for ask in (client.run_on_scheduler, client.run):
                    ask(resolve_name, f"{training_jobs.__name__}:STOP")
            except ImportError as problem:
                raise ValueError(
                    f"the cluster at {self.cluster} cannot import {problem.name}: start scheduler and workers in an "
                    "environment where this project is installed"
                ) from problem
            yield client


def make_run(
    output: Path, setting: Setting, seed: int, common: Sequence[str], max_iter: int | None, analyze: bool = False
) -> Run:
    """A run of `setting` in a folder below `output`, with its result if it is finished.

    Args:
        common: overrides besides the setting's own changes.
        max_iter: iterations; None for the config's.

    Raises:
        ValueError: the folder holds a run of another config.
    """
    # Without "=" and spaces, which would have to be quoted in overrides that name a file in it.
    name = re.sub(r"[^\w.+-]+", "_", setting.name.replace("=", "-"))
    folder = output / name / f"seed_{seed}"
    overrides = [*common, *(f"{key}={value}" for key, value in setting.changes), f"train.seed={seed}"]
    overrides += [] if max_iter is None else [f"train.max_iter={max_iter}"]
    cfg = load_config(str(setting.config), overrides)
    overrides.append(f"train.output_dir={quoted(str(folder))}")
    may_use_gpu = cfg.train.device in ("auto", "cuda")
    run = Run(setting, seed, folder, overrides, cfg.train.max_iter, fingerprint_of(cfg), may_use_gpu, analyze)
    begun = folder / BEGUN
    if begun.is_file() and begun.read_text(encoding="utf-8") != run.fingerprint:
        raise ValueError(f"{folder} holds a run of another config: choose another --output, or delete it")
    if (folder / DONE).is_file():
        run.result = json.loads((folder / DONE).read_text(encoding="utf-8"))
    return run


def fingerprint_of(cfg: DictConfig) -> str:
    """All of a config but where its output goes, as text."""
    cfg.train.output_dir = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        LazyConfig.save(cfg, str(path))
        return path.read_text(encoding="utf-8")


def read_result(run: Run, seconds: float) -> dict:
    """The last evaluation's figures, kept in the run's folder as well."""
    rows = read_rows(run.folder / "metrics.json")
    last = next((row for row in reversed(rows) if row.get(METRIC) is not None), None)
    if last is None:
        run.error = f"its metrics.json has no {METRIC}"
        return None
    result = {"seed": run.seed, "seconds": round(seconds)} | {name: last[name] for name in METRICS if name in last}
    if run.analyze:
        (model,) = json.loads((run.folder / "alignment/alignment.json").read_text(encoding="utf-8"))["models"]
        result |= {n: model["figures"][n.removeprefix(LAYERS)] for n in METRICS if n.startswith(LAYERS)}
    write(run.folder / DONE, json.dumps(result))
    for checkpoint in run.folder.glob("model_[0-9]*.pth"):  # for resuming, which is over
        checkpoint.unlink()
    return result


def read_rows(path: Path) -> list[dict]:
    """What can be read of a metrics.json that is perhaps being written."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def progress_of(run: Run) -> int:
    """Iterations done."""
    if run.result:
        return run.max_iter
    rows = read_rows(run.folder / "metrics.json")
    return min(rows[-1]["iteration"] + 1, run.max_iter) if rows else 0


def last_words(console: Path) -> str:
    """The error in a run's output, or its last line."""
    lines = [line.strip() for line in console.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def train_all(runs: Sequence[Run], runner: Runner, after_each: Callable[[], object]) -> None:
    """Train what is not finished; `after_each` is called when a run ends."""
    waiting = [run for run in runs if run.result is None]
    kept = len(runs) - len(waiting)
    if kept:
        print(f"{kept} of {len(runs)} runs are finished already")
    if not waiting:
        return
    begun = sum(map(progress_of, waiting))
    total = sum(run.max_iter for run in waiting)
    begin = time.monotonic()

    def say(text: str) -> None:
        bar.write(text)
        sys.stdout.flush()

    with (
        runner.client() as client,
        tqdm(total=total, initial=begun, unit="it", smoothing=0, disable=None) as bar,
    ):
        stop, queue, active = Event(STOP, client), list(waiting), dict[Future, Run]()
        stop.clear()
        try:
            while queue or active:
                slots = sum(client.nthreads().values())  # again each time, as workers come and go
                while queue and len(active) < slots:
                    run = queue.pop(0)
                    active[submit(client, run)] = run
                ended = [future for future in active if future.done()]
                iterations = sum(run.max_iter if run.error else progress_of(run) for run in waiting)
                bar.n = iterations
                bar.set_postfix_str(", ".join(run.title for run in active.values()), refresh=True)
                for future in ended:
                    run = active.pop(future)
                    take_result(run, future)
                    after_each()
                    if run.error and not progress_of(run) and all(other.result is None for other in runs):
                        queue.clear()  # it did not even start, so the others would not either
                    left = sum(run.result is None and not run.error for run in waiting)
                    seconds = (time.monotonic() - begin) / max(1, iterations - begun) * (total - iterations)
                    eta = f"; {left} to go, about {timedelta(seconds=round(seconds))}" if left and queue else ""
                    say(f"{run.title}: {outcome(run)}{eta}")
                if not ended:
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            say("stopping the trainings, with checkpoints")
            stop.set()
            wait(list(active), timeout=STOP_SECONDS + 2 * POLL_SECONDS)
            raise


def submit(client: Client, run: Run) -> Future:
    """Where a training is killed, or its worker dies, Dask tries again, and it resumes."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / BEGUN).write_text(run.fingerprint, encoding="utf-8")
    config = ["--config-file", str(run.setting.config)]
    commands = [[*TRAIN, *config, "--resume=auto", *run.overrides]]
    if run.analyze:
        seen = ["--checkpoint", str(run.folder / "model_final.pth"), "--output", str(run.folder / "alignment")]
        commands.append([*ANALYZE, *config, *seen, *run.overrides])
    workers = client.scheduler_info()["workers"].values()
    on_gpu = run.may_use_gpu and any(worker["resources"].get("GPU") for worker in workers)
    path = os.pathsep.join(filter(None, [PACKAGES, os.environ.get("PYTHONPATH")]))
    job = Job(commands, str(run.folder.resolve()), os.getcwd(), {**os.environ, "PYTHONPATH": path}, on_gpu)
    resources = {"GPU": 1} if on_gpu else None
    return client.submit(training_jobs.carry_out, job, pure=False, retries=RETRIES, resources=resources)


def take_result(run: Run, future: Future) -> None:
    """Fills in `run.result` or `run.error`."""
    if future.status != "finished":
        run.error = f"given up after {RETRIES + 1} tries: {future.exception() or future.status}"
        return
    code, seconds = future.result()
    if code == 0:
        run.result = read_result(run, seconds)
    else:
        run.error = last_words(run.folder / CONSOLE) or f"exit status {code}"


def outcome(run: Run) -> str:
    if run.result is None:
        return f"failed: {run.error}"
    return f"AP {run.result[METRIC]:.2f} in {timedelta(seconds=run.result['seconds'])}"


def relative(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(f"{text}\n".encode())


def choose_runner(jobs: int | None, runs: Sequence[Run], cluster: str | None) -> Runner:
    """On this machine as many trainings at a time as there are cores, or GPUs to train on, and no more than runs."""
    gpus = torch.cuda.device_count() if any(run.may_use_gpu for run in runs) else 0
    return Runner(max(1, min(jobs or gpus or cores(), len(runs))), gpus, cluster)


def carry_out(
    args: argparse.Namespace,
    runs: Sequence[Run],
    what: str,
    facts: Mapping,
    report: Callable[[], tuple[Mapping, str]],
    draw: Callable[[], Figure],
    plot: str,
) -> bool:
    """Train what is to do; returns whether all runs succeeded.

    Args:
        args: of `add_options` and `parse_words`.
        what: is trained, for the first line.
        facts: for results.json, beside those of `environment`.
        report: results, and a table of them in Markdown. Both are written after each run, and at the end, also of
            Ctrl-C.
        draw: the plot, once all is done.
        plot: its file's name.
    """
    runner = choose_runner(args.jobs, runs, args.cluster)
    print(f"{what}, {runner}, in {args.output}")
    if args.dry_run:
        print(list_runs(runs))
        return True
    args.output.mkdir(parents=True, exist_ok=True)
    facts = environment(args.words, runner) | facts

    def save() -> str:
        results, table = report()
        write(args.output / "results.json", json.dumps({**results, "environment": facts}, indent=1))
        write(args.output / "table.md", table)
        return table

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job scheduler's way to say Ctrl-C
    try:
        train_all(runs, runner, save)
    finally:
        table = save()
    draw().savefig(args.output / plot, dpi=160)
    print(f"\n{table}")
    print(f"Wrote results.json, table.md and {plot} in {args.output}")
    return tell_failures(runs)


def tell_failures(runs: Sequence[Run]) -> bool:
    """One line for each run without a result; returns whether there is none."""
    failed = [run for run in runs if run.result is None]
    for run in failed:
        reason = f"failed: {run.error}; see {run.folder / CONSOLE}" if run.error else "not run"
        print(f"{run.title}: {reason}", file=sys.stderr)
    return not failed


def environment(words: Sequence[str], runner: Runner) -> dict:
    """What ran where, for results.json."""
    return {
        "command": shlex.join([*program(), *words]),
        "platform": describe().removeprefix("platform: "),
        "PyTorch": torch.__version__,
        "trained": str(runner),
    }


def list_runs(runs: Sequence[Run]) -> str:
    return "\n".join(f"{'finished' if run.result else 'to do':9} {run.title}" for run in runs)


def check_counts(seeds: Sequence[int], jobs: int | None, max_iter: int | None) -> None:
    """Raises ValueError for what cannot be meant."""
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError("--seeds are different numbers from 0")
    if jobs is not None and jobs < 1 or max_iter is not None and max_iter < 1:
        raise ValueError("--jobs and --max-iter are at least 1")


def add_options(parser: argparse.ArgumentParser, seeds: Sequence[int], output: str) -> None:
    """What is asked about many trainings, whatever they are of; `seeds` and `output` are the defaults."""
    default = " ".join(map(str, seeds))
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, metavar="N", help=f"(default: {default})")
    parser.add_argument("--max-iter", type=int, metavar="N", help="iterations of each run (default: the config's)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, or per core)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="Dask scheduler whose workers train: tcp://host:8786")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only list the runs")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the configs")


def parse_words(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Options and `key=value` in any order; `words` has them as they were given, for results.json."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_intermixed_args(words)
    args.words = words
    return args
