"""Many trainings, a few at a time: what `align-detr ablate` and `compare` have in common.

Each is an `align-detr train` in a folder of its own. Finished ones are kept, others go on from their last
checkpoint; a folder that holds a run of another config is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event

import torch
from detectron2.config import LazyConfig
from omegaconf import DictConfig
from tqdm import tqdm

import align_detr
from align_detr._platform import describe
from align_detr.commands import program
from align_detr.commands.command_line import errors_in_one_line, interrupts_end, load_config
from align_detr.config import EMBEDDED_ROOT

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
POLL_SECONDS = 2
STOP_SECONDS = 60  # for the iteration that is running, and its checkpoint
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
    analyze: bool = False
    result: dict | None = None
    error: str = ""

    @property
    def title(self) -> str:
        return f"{self.setting.name}, seed {self.seed}"


@dataclass
class Runner:
    """Runs trainings side by side.

    Attributes:
        threads: of each training.
        gpus: how many there are to share out; 0 leaves the choice of device to the config.
    """

    jobs: int
    threads: int
    gpus: int
    stop: Event = field(default_factory=Event)
    processes: dict[int, subprocess.Popen] = field(default_factory=dict)

    def run(self, run: Run, place: int) -> None:
        """Train; fills in `run.result` or `run.error`."""
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / BEGUN).write_text(run.fingerprint, encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [PACKAGES, os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            **({"CUDA_VISIBLE_DEVICES": visible_gpu(place % self.gpus)} if self.gpus else {}),
        }
        begin = time.monotonic()
        code = self._call(run, [*TRAIN, "--resume"], "w", environment)
        if code == 0 and run.analyze:
            seen = ["--checkpoint", run.folder / "model_final.pth", "--output", run.folder / "alignment"]
            code = self._call(run, [*ANALYZE, *seen], "a", environment)
        if code == 0:
            run.result = read_result(run, time.monotonic() - begin)
        elif not self.stop.is_set():
            run.error = last_words(run.folder / "console.txt") or f"exit status {code}"

    def _call(self, run: Run, words: Sequence[str | Path], mode: str, environment: Mapping[str, str]) -> int:
        """The exit status of a tool with the run's config and overrides."""
        command = [*map(str, words), "--config-file", str(run.setting.config), *run.overrides]
        with (run.folder / "console.txt").open(mode, encoding="utf-8") as console:
            # A session of its own: Ctrl-C is for this process, which passes it on.
            process = subprocess.Popen(
                command, stdout=console, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            self.processes[process.pid] = process
            if self.stop.is_set():
                process.send_signal(signal.SIGINT)
            code = process.wait()
            del self.processes[process.pid]
        return code

    def interrupt(self) -> None:
        """Let every training save a checkpoint and end; end those that do not."""
        self.stop.set()
        for process in list(self.processes.values()):
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        with suppress(KeyboardInterrupt):  # again: at once
            while self.processes and time.monotonic() < deadline:
                time.sleep(0.1)
        for pid in list(self.processes):
            os.killpg(pid, signal.SIGKILL)


def visible_gpu(place: int) -> str:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[place] if given else str(place)


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
    overrides.append(f"train.output_dir={quoted(folder)}")
    run = Run(setting, seed, folder, overrides, cfg.train.max_iter, fingerprint_of(cfg), analyze)
    begun = folder / BEGUN
    if begun.is_file() and begun.read_text(encoding="utf-8") != run.fingerprint:
        raise ValueError(f"{folder} holds a run of another config: choose another --output, or delete it")
    if (folder / DONE).is_file():
        run.result = json.loads((folder / DONE).read_text(encoding="utf-8"))
    return run


def quoted(path: Path) -> str:
    """As a value in an override."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"


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
    begun = {run.folder: progress_of(run) for run in waiting}
    total = sum(run.max_iter for run in waiting)
    begin = time.monotonic()

    def done() -> int:
        return sum(run.max_iter if run.error else progress_of(run) for run in waiting)

    def say(text: str) -> None:
        bar.write(text)
        sys.stdout.flush()

    with (
        tqdm(total=total, initial=sum(begun.values()), unit="it", smoothing=0, disable=None) as bar,
        ThreadPoolExecutor(runner.jobs) as pool,
    ):
        queue, active, places = list(waiting), dict[Future, tuple[Run, int]](), list(range(runner.jobs))
        try:
            while queue or active:
                while queue and places:
                    run, place = queue.pop(0), places.pop(0)
                    active[pool.submit(runner.run, run, place)] = run, place
                ended, _ = wait(active, POLL_SECONDS, FIRST_COMPLETED)
                iterations = done()
                bar.n = iterations
                bar.set_postfix_str(", ".join(run.title for run, _ in active.values()), refresh=True)
                for future in ended:
                    run, place = active.pop(future)
                    places.append(place)
                    future.result()
                    after_each()
                    if run.error and not progress_of(run) and all(other.result is None for other in runs):
                        queue.clear()  # it did not even start, so the others would not either
                    left = sum(run.result is None and not run.error for run in waiting)
                    gained = iterations - sum(begun.values())
                    seconds = (time.monotonic() - begin) / max(1, gained) * (total - iterations)
                    eta = f"; {left} to go, about {timedelta(seconds=round(seconds))}" if left and queue else ""
                    say(f"{run.title}: {outcome(run)}{eta}")
        except KeyboardInterrupt:
            say("stopping the trainings, with checkpoints")
            runner.interrupt()
            raise


def outcome(run: Run) -> str:
    if run.result is None:
        return f"failed: {run.error}"
    return f"AP {run.result[METRIC]:.2f} in {timedelta(seconds=run.result['seconds'])}"


def relative(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def choose_runner(jobs: int | None, runs: int, device: str) -> Runner:
    """As many trainings at a time as there are cores, or GPUs to train on, and no more than there are runs."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, min(jobs or gpus or cores, runs))
    return Runner(jobs, max(1, cores // jobs), gpus)



def carry_out(runs: Sequence[Run], runner: Runner, save: Callable[[], Mapping]) -> Mapping:
    """Train what is to do; `save` writes and returns the summary, after each run and at the end, also of Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job scheduler's way to say Ctrl-C
    try:
        train_all(runs, runner, save)
    finally:
        summary = save()
    return summary


def tell_failures(runs: Sequence[Run]) -> bool:
    """One line for each run without a result; returns whether there is none."""
    failed = [run for run in runs if run.result is None]
    for run in failed:
        reason = f"failed: {run.error}; see {run.folder / 'console.txt'}" if run.error else "not run"
        print(f"{run.title}: {reason}", file=sys.stderr)
    return not failed


def environment(words: Sequence[str], runner: Runner, device: str) -> dict:
    """What ran where, for results.json."""
    return {
        "command": shlex.join([*program(), *words]),
        "platform": describe().removeprefix("platform: "),
        "PyTorch": torch.__version__,
        "device": str(device),
        "threads": runner.threads,
        "jobs": runner.jobs,
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
    parser.add_argument("--output", type=Path, default=Path(output), help="folder (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only list the runs")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the configs")


def parse_words(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Options and `key=value` in any order; `words` has them as they were given, for results.json."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_intermixed_args(words)
    args.words = words
    return args


def finish(work: Callable[[], bool]) -> None:
    """Do the work and end the program: with exit status 1 if it did not all succeed, or with one line of error."""
    with errors_in_one_line(), interrupts_end("the same command goes on from here"):
        complete = work()
    sys.exit(0 if complete else 1)
