#!/usr/bin/env python3
"""Train with a grid of settings, several seeds each, and tell differences from noise.

    python tools/ablate.py [key=value ...] [--grid alpha=0,0.25,0.5 k=1,2,3 ...] [--full] [--seeds 0 1 2] \\
        [--max-iter N] [--jobs N] [--config-file CONFIG] [--baseline CONFIG | --no-baseline] [--output FOLDER]

Each value of the grid is tried on its own, with all else as in CONFIG; `--full` tries all combinations. A short name is
an option of the criterion: alpha is model.criterion.alpha. Others are written in full: optimizer.lr=1e-4,2e-4. The
baseline is another config that is trained alike. `key=value` comes first and goes for all runs; what it says of
model.criterion, not for the baseline.

Every run is one of tools/train_net.py in a folder of its own. Interrupted or failed, the same command goes on where it
was: finished runs are kept, others resume from their last checkpoint. Writes results.json, table.md and ablation.png.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import fmean, stdev
from threading import Event

from command_line import errors_in_one_line, load_config  # isort: skip (sets sys.path)

import torch
from detectron2.config import LazyConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from scipy import stats
from tabulate import tabulate
from tqdm import tqdm

from align_detr._platform import describe
from align_detr.config import EMBEDDED_ROOT

ROOT = EMBEDDED_ROOT.parent
TRAIN = Path(__file__).with_name("train_net.py")
CONFIG = ROOT / "projects/align_detr/configs/align_detr_tiny.py"
BASELINE = EMBEDDED_ROOT / "projects/dino/configs/dino_tiny.py"
CRITERION = "model.criterion."
GRID = ("alpha=0,0.25,0.5,0.75", "k=1,2,3", "tau=0.5,1.5,3", "gamma=1,2,3", "loss_class_type=ia_bce_loss,align_loss")
SYMBOLS = {"alpha": "α", "tau": "τ", "gamma": "γ"}

METRIC = "bbox/AP"
METRICS = {  # what is kept of a run: its name in metrics.json, and in the table
    METRIC: "AP",
    "bbox/AP50": "AP50",
    "bbox/AP75": "AP75",
    "alignment/best_in_top_n": "BR in top N",
    "alignment/spearman": "Spearman",
}
DIGITS = {METRIC: 2, "bbox/AP50": 2, "bbox/AP75": 2}
CONFIDENCE = 0.95
DEFAULT, PLAIN = "default", "baseline"
POLL_SECONDS = 2
STOP_SECONDS = 60  # for the iteration that is running, and its checkpoint
BEGUN, DONE = "ablation_config.yaml", "ablation_result.json"


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
    """A training of a setting."""

    setting: Setting
    seed: int
    folder: Path
    overrides: list[str]
    max_iter: int
    fingerprint: str
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
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            **({"CUDA_VISIBLE_DEVICES": visible_gpu(place % self.gpus)} if self.gpus else {}),
        }
        begin = time.monotonic()
        with (run.folder / "console.txt").open("w", encoding="utf-8") as console:
            command = [sys.executable, str(TRAIN), "--config-file", str(run.setting.config), "--resume", *run.overrides]
            # A session of its own: Ctrl-C is for this process, which passes it on.
            process = subprocess.Popen(
                command, stdout=console, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            self.processes[process.pid] = process
            if self.stop.is_set():
                process.send_signal(signal.SIGINT)
            code = process.wait()
            del self.processes[process.pid]
        if code == 0:
            run.result = read_result(run, time.monotonic() - begin)
        elif not self.stop.is_set():
            run.error = last_words(run.folder / "console.txt") or f"exit status {code}"

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


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """`["k=1,2"]` as `{"model.criterion.k": ["1", "2"]}`.

    Raises:
        ValueError: a word is of another form, or names what another one does.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not re.fullmatch(r"[\w.]+", name) or not all(values.split(",")):
            raise ValueError(f"--grid takes name=value,value,..., not {word}")
        key = name if "." in name else CRITERION + name
        if key in grid:
            raise ValueError(f"--grid has {name} twice")
        grid[key] = list(dict.fromkeys(values.split(",")))
    return grid


def default_of(cfg: DictConfig, key: str) -> object:
    """The config's value at `key`, or the default of the constructor's argument that `key` names.

    Raises:
        ValueError: neither is there.
    """
    value = OmegaConf.select(cfg, key)
    if value is not None:
        return value
    parent, _, leaf = key.rpartition(".")
    target = (OmegaConf.select(cfg, parent) or {}).get("_target_")
    if target is not None:
        target = get_object(target) if isinstance(target, str) else target
        for cls in inspect.getmro(target) if inspect.isclass(target) else (target,):
            parameter = inspect.signature(cls).parameters.get(leaf)
            if parameter is not None and parameter.default is not parameter.empty:
                return parameter.default
    raise ValueError(f"--grid: the config has no {key}")


def is_same(written: str, value: object) -> bool:
    """Whether a value as written on the command line is `value`: 2 is 2.0."""
    try:
        return float(written) == float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return written.lower() == str(value).lower()


def make_settings(
    cfg: DictConfig, config: Path, grid: Mapping[str, Sequence[str]], full: bool, baseline: Path | None
) -> list[Setting]:
    """The baseline, the default, and what the grid adds to it: single changes, or with `full` their combinations."""
    changed = {
        key: [value for value in values if not is_same(value, default_of(cfg, key))] for key, values in grid.items()
    }
    if full:
        # None stands for the default, which belongs to the product only where the grid has it.
        axes = [
            [None] * (len(changed[key]) < len(values)) + [(key, value) for value in changed[key]]
            for key, values in grid.items()
        ]
        combinations = [tuple(filter(None, combination)) for combination in itertools.product(*axes)]
    else:
        combinations = [((key, value),) for key, values in changed.items() for value in values]
    settings = [Setting(PLAIN, baseline)] if baseline else []
    settings.append(Setting(DEFAULT, config))
    return settings + [Setting(name_of(changes), config, changes) for changes in combinations if changes]


def name_of(changes: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{key.removeprefix(CRITERION)}={value}" for key, value in changes)


def plan(args: argparse.Namespace, settings: Sequence[Setting]) -> list[Run]:
    """All runs, seed by seed, so that every setting has a run early; finished ones with their results.

    Raises:
        ValueError: a folder holds a run of another config.
    """
    runs = []
    for seed, setting in itertools.product(args.seeds, settings):
        # Without "=" and spaces, which would have to be quoted in overrides that name a file in it.
        name = re.sub(r"[^\w.+-]+", "_", setting.name.replace("=", "-"))
        folder = args.output / name / f"seed_{seed}"
        common = [word for word in args.opts if not (setting.name == PLAIN and word.lstrip("+~").startswith(CRITERION))]
        overrides = [*common, *(f"{key}={value}" for key, value in setting.changes), f"train.seed={seed}"]
        overrides += [] if args.max_iter is None else [f"train.max_iter={args.max_iter}"]
        cfg = load_config(str(setting.config), overrides)
        overrides.append(f"train.output_dir={quoted(folder)}")
        run = Run(setting, seed, folder, overrides, cfg.train.max_iter, fingerprint_of(cfg))
        begun = folder / BEGUN
        if begun.is_file() and begun.read_text(encoding="utf-8") != run.fingerprint:
            raise ValueError(f"{folder} holds a run of another config: choose another --output, or delete it")
        if (folder / DONE).is_file():
            run.result = json.loads((folder / DONE).read_text(encoding="utf-8"))
        runs.append(run)
    return runs


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


def train_all(runs: Sequence[Run], runner: Runner, after_each) -> None:
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


def summarize(runs: Sequence[Run]) -> dict:
    """Mean and deviation of every setting, and its difference from the default with a confidence interval.

    The deviation between seeds is pooled over all settings: a few seeds of one setting say little of it. The interval
    is Student's, for the difference of two means with that deviation. It is taken to be the same in all settings.
    """
    values: dict[str, list[dict]] = {}
    settings: dict[str, Setting] = {}
    for run in runs:
        settings[run.setting.name] = run.setting
        values.setdefault(run.setting.name, []).extend([run.result] if run.result else [])
    scores = {name: [result[METRIC] for result in results] for name, results in values.items()}
    pooled, freedom = pooled_deviation(list(scores.values()))
    rows = []
    for name, setting in settings.items():
        means = {}
        for metric in METRICS:
            found = [result[metric] for result in values[name] if result.get(metric) is not None]
            if found:
                means[metric] = {"mean": fmean(found), "deviation": stdev(found) if len(found) > 1 else None}
        rows.append(
            {
                "name": name,
                "config": relative(setting.config),
                "changes": dict(setting.changes),
                "n": len(values[name]),
                "metrics": means,
                "difference": None
                if name == DEFAULT
                else difference(scores[name], scores.get(DEFAULT, []), pooled, freedom),
                "runs": values[name],
            }
        )
    return {"metric": METRIC, "pooled_deviation": pooled, "degrees_of_freedom": freedom, "settings": rows}


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """The standard deviation within groups, and its degrees of freedom; None where no group has two values."""
    freedom = sum(len(group) - 1 for group in groups if group)
    if not freedom:
        return None, 0
    squares = sum((value - fmean(group)) ** 2 for group in groups if group for value in group)
    return math.sqrt(squares / freedom), freedom


def difference(
    values: Sequence[float], default: Sequence[float], deviation: float | None, freedom: int
) -> dict[str, float | bool | None] | None:
    """Of the means, with the half-width of its interval; None where one of them is missing."""
    if not values or not default:
        return None
    mean = fmean(values) - fmean(default)
    if deviation is None:
        return {"mean": mean, "half_width": None, "within_noise": None}
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    half_width = quantile * deviation * math.sqrt(1 / len(values) + 1 / len(default))
    return {"mean": mean, "half_width": half_width, "within_noise": abs(mean) <= half_width}


def make_table(summary: Mapping) -> str:
    """Markdown, with what one needs to know to read it."""
    rows = summary["settings"]
    metrics = [metric for metric in METRICS if any(metric in row["metrics"] for row in rows)]
    lines = [
        [title_of(row), *(cell(row, metric) for metric in metrics), row["n"], verdict(row["difference"])]
        for row in rows
    ]
    heads = ["setting", *(METRICS[metric] for metric in metrics), "n", "AP − default"]
    align = ("left", *["right"] * (len(metrics) + 1), "left")
    table = tabulate(lines, heads, tablefmt="github", colalign=align, disable_numparse=True)
    return f"{table}\n\n{note(summary)}\n"


def title_of(row: Mapping) -> str:
    if row["name"] in (DEFAULT, PLAIN):
        return f"{row['name']} ({Path(row['config']).stem})"
    return ", ".join(f"{symbol(key)} = {value}" for key, value in row["changes"].items())


def symbol(key: str) -> str:
    name = key.removeprefix(CRITERION)
    return SYMBOLS.get(name, name)


def cell(row: Mapping, metric: str) -> str:
    values = row["metrics"].get(metric)
    if values is None:
        return "–"
    digits = DIGITS.get(metric, 3)
    around = "" if values["deviation"] is None else f" ± {values['deviation']:.{digits}f}"
    return f"{values['mean']:.{digits}f}{around}".replace("-", "−")


def verdict(compared: Mapping | None) -> str:
    if compared is None:
        return ""
    mean = f"{round(compared['mean'], 2) + 0.0:+.2f}".replace("-", "−")  # adding zero makes 0.0 of -0.0
    if compared["half_width"] is None:
        return mean
    return f"{mean} ± {compared['half_width']:.2f}{', within noise' if compared['within_noise'] else ''}"


def note(summary: Mapping) -> str:
    text = "Mean ± standard deviation over n seeds, of the last evaluation; AP in %."
    if summary["pooled_deviation"] is None:
        return f"{text} With one seed each, nothing tells a difference from noise."
    if len({row["n"] for row in summary["settings"]}) > 1:
        text += " Where n is smaller, runs failed or are still to come."
    compared = sum(row["difference"] is not None for row in summary["settings"])
    text += (
        f" The last column has the difference of mean AP from the default and its {CONFIDENCE:.0%} interval"
        f" (Student's t; deviation between seeds pooled over all settings: {summary['pooled_deviation']:.2f},"
        f" {summary['degrees_of_freedom']} degrees of freedom); within noise: the interval contains 0."
    )
    if compared > 1:
        text += f" Of {compared} intervals, {compared * (1 - CONFIDENCE):.1g} would miss by chance alone."
    return text


def draw(summary: Mapping, defaults: Mapping[str, object], grid: Mapping[str, Sequence[str]], full: bool):
    """AP by value, one panel per option; with `full` by setting. Dots are runs, bars standard deviations."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from align_detr.analysis.plots import STYLE

    by_name = {row["name"]: row for row in summary["settings"]}
    reference, plain = by_name[DEFAULT], by_name.get(PLAIN)
    with rc_context(STYLE):
        if full:
            figure = Figure(figsize=(7, 1.5 + 0.28 * len(by_name)))
            axes = figure.add_subplot()
            rows = [row for row in reversed(summary["settings"]) if row["n"]]
            for y, row in enumerate(rows):
                draw_point(axes, y, row, upright=False)
            axes.set_yticks(range(len(rows)), [title_of(row) for row in rows])
            axes.set(xlabel="box AP (%)", title="All combinations")
            axes.grid(axis="y", visible=False)
            return figure
        columns = min(3, len(grid)) or 1
        lines = -(-len(grid) // columns) or 1
        figure = Figure(figsize=(0.4 + 2.7 * columns, 0.7 + 2.5 * lines))
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flat
        for axes in panels[len(grid) :]:
            axes.set_visible(False)
        for axes, (key, values) in zip(panels, grid.items(), strict=False):
            entries = [
                (value, reference if is_same(value, defaults[key]) else by_name[name_of([(key, value)])])
                for value in values
            ]
            draw_reference(axes, summary, reference, plain)
            for x, (_, row) in enumerate(entries):
                if row["n"]:
                    draw_point(axes, x, row, upright=True)
            means = [(x, row["metrics"][METRIC]["mean"]) for x, (_, row) in enumerate(entries) if row["n"]]
            axes.plot(*zip(*means, strict=True), "-", color="#123c69", linewidth=1) if means else None
            axes.set_xticks(range(len(entries)), [value.removesuffix("_loss").replace("_", "\n") for value in values])
            axes.set(xlabel=symbol(key), xlim=(-0.5, len(entries) - 0.5))
            axes.grid(axis="x", visible=False)
        for axes in figure.axes[::columns]:
            axes.set_ylabel("box AP (%)")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns + 1, 3))
    return figure


def draw_reference(axes, summary: Mapping, reference: Mapping, plain: Mapping | None) -> None:
    """Lines for the default and the baseline; what lies in the band does not clearly differ from the default."""
    if reference["n"]:
        mean = reference["metrics"][METRIC]["mean"]
        widths = [row["difference"]["half_width"] for row in summary["settings"] if row["difference"]]
        width = max((width for width in widths if width is not None), default=None)
        if width is not None:
            axes.axhspan(mean - width, mean + width, color="#ececec", label="within noise of the default", zorder=0)
        axes.axhline(mean, color="#555555", linewidth=1, label="default")
    if plain is not None and plain["n"]:
        axes.axhline(
            plain["metrics"][METRIC]["mean"], color="#b3541e", linestyle="--", linewidth=1.2, label="plain baseline"
        )


def draw_point(axes, place: float, row: Mapping, upright: bool) -> None:
    """A dot per run, and their mean and deviation; the default's is hollow."""
    values = row["metrics"][METRIC]
    runs = [result[METRIC] for result in row["runs"]]
    places = [place - 0.14] * len(runs)
    style = dict(marker="o", color="none", markeredgecolor="#777777", markersize=3.5, linestyle="none", zorder=3)
    axes.plot(*((places, runs) if upright else (runs, places)), **style, label="runs" if place == 0 else None)
    error = {"yerr" if upright else "xerr": values["deviation"] or 0}
    position = (place, values["mean"]) if upright else (values["mean"], place)
    face = "white" if row["name"] == DEFAULT else "#123c69"
    axes.errorbar(
        *position,
        **error,
        fmt="s",
        color="#123c69",
        markerfacecolor=face,
        markersize=5.5,
        capsize=3,
        zorder=4,
        label="mean ± deviation" if place == 0 else None,
    )


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


def ablate(args: argparse.Namespace) -> bool:
    """Trains and reports; returns whether all runs succeeded."""
    check(args)
    grid = parse_grid(args.grid)
    cfg = load_config(str(args.config_file), args.opts)
    load_config(str(args.config_file), [f"{key}={value}" for key, values in grid.items() for value in values])
    settings = make_settings(cfg, args.config_file, grid, args.full, None if args.no_baseline else args.baseline)
    runs = plan(args, settings)
    runner = choose_runner(args.jobs, len(runs), cfg.train.device)
    trained = f"{len(settings)} settings x {len(args.seeds)} seeds of {runs[0].max_iter} iterations"
    print(f"{trained}, {runner.jobs} at a time with {runner.threads} threads each, in {args.output}")
    if args.dry_run:
        print("\n".join(f"{'finished' if run.result else 'to do':9} {run.title}" for run in runs))
        return True
    args.output.mkdir(parents=True, exist_ok=True)
    environment = {
        "command": shlex.join(["python", relative(Path(__file__)), *args.words]),
        "platform": describe().removeprefix("platform: "),
        "PyTorch": torch.__version__,
        "device": str(cfg.train.device),
        "threads": runner.threads,
        "jobs": runner.jobs,
        "max_iter": runs[0].max_iter,
    }

    def save() -> dict:
        summary = summarize(runs) | {"environment": environment}
        write(args.output / "results.json", json.dumps(summary, indent=1))
        write(args.output / "table.md", make_table(summary))
        return summary

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job scheduler's way to say Ctrl-C
    try:
        train_all(runs, runner, save)
    finally:
        summary = save()
    figure = draw(summary, {key: default_of(cfg, key) for key in grid}, grid, args.full)
    figure.savefig(args.output / "ablation.png", dpi=160)
    print(f"\n{make_table(summary)}")
    print(f"Wrote results.json, table.md and ablation.png in {args.output}")
    failed = [run for run in runs if run.result is None]
    for run in failed:
        reason = f"failed: {run.error}; see {run.folder / 'console.txt'}" if run.error else "not run"
        print(f"{run.title}: {reason}", file=sys.stderr)
    return not failed


def check(args: argparse.Namespace) -> None:
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise ValueError("--seeds are different numbers from 0")
    if args.jobs is not None and args.jobs < 1 or args.max_iter is not None and args.max_iter < 1:
        raise ValueError("--jobs and --max-iter are at least 1")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", type=Path, default=CONFIG, metavar="CONFIG", help="(default: align_detr_tiny)")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="CONFIG", help="(default: dino_tiny)")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument(
        "--grid", nargs="+", action="extend", metavar="NAME=V,V", help=f"what to vary (default: {' '.join(GRID)})"
    )
    parser.add_argument("--full", action="store_true", help="all combinations instead of one change at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--max-iter", type=int, metavar="N", help="iterations of each run (default: the config's)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, or per core)")
    parser.add_argument("--output", type=Path, default=Path("output/ablation"), help="folder (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only list the runs")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the configs")
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_intermixed_args(words)
    args.words = words
    args.grid = args.grid or list(GRID)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with errors_in_one_line():
        complete = ablate(args)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
