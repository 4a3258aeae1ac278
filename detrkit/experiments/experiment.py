"""An experiment: many trainings, and one table and plot of their results."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from matplotlib.figure import Figure

from align_detr._platform import describe
from detrkit.runtime.extras import pip_install

from . import CONSOLE
from .runs import Run, write

EXTRA = pip_install("experiments")


@dataclass(frozen=True)
class Options:
    """How the trainings of an experiment are run.

    Attributes:
        output: folder of the experiment; each training has a folder below it.
        seeds: each setting is trained once with each of them.
        max_iter: iterations of each training; None for its config's.
        jobs: trainings at a time on this machine; None for one per GPU, or one per core.
        cluster: address of a Dask scheduler whose workers train; None to train on this machine.
        dry_run: only list the trainings.
        overrides: `key=value` for all configs.
        command: the command line, for results.json.

    Raises:
        ValueError: a seed is negative or given twice, or a count is below 1.
    """

    output: Path
    seeds: Sequence[int]
    max_iter: int | None = None
    jobs: int | None = None
    cluster: str | None = None
    dry_run: bool = False
    overrides: Sequence[str] = ()
    command: str = field(default_factory=lambda: shlex.join(sys.argv))

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: expected different numbers, 0 or higher")
        for name, value in (("--jobs", self.jobs), ("--max-iter", self.max_iter)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: expected 1 or higher")


@dataclass(frozen=True)
class Report:
    """How the results of an experiment are written.

    Attributes:
        summarize: results as plain data, and a table of them in Markdown.
        draw: the plot.
        plot: file name of the plot.
        facts: what results.json says about the machine, besides the platform and PyTorch's version.
    """

    summarize: Callable[[], tuple[Mapping, str]]
    draw: Callable[[], Figure]
    plot: str
    facts: Mapping = field(default_factory=dict)


def run_experiment(runs: Sequence[Run], report: Report, options: Options, title: str) -> bool:
    """Train what is not finished, and write results.json, table.md and the plot.

    results.json and table.md are written after each training, and on Ctrl-C.

    Args:
        title: what is trained, for the first line of output.

    Returns:
        Whether all trainings succeeded.

    Raises:
        ValueError: Dask is not installed, or the cluster cannot be used.
    """
    runner_module = import_runner()
    runner = runner_module.choose_runner(options.jobs, runs, options.cluster)
    print(f"{title}, {runner}, in {options.output}")
    if options.dry_run:
        print(list_runs(runs))
        return True
    options.output.mkdir(parents=True, exist_ok=True)
    environment = {
        "command": options.command,
        "platform": describe().removeprefix("platform: "),
        "PyTorch": torch.__version__,
        "trained": str(runner),
        **report.facts,
    }

    def save() -> str:
        results, table = report.summarize()
        write(options.output / "results.json", json.dumps({**results, "environment": environment}, indent=1))
        write(options.output / "table.md", table)
        return table

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # sent by job schedulers
    try:
        runner_module.train_all(runs, runner, save)
    finally:
        table = save()
    report.draw().savefig(options.output / report.plot, dpi=160)
    print(f"\n{table}")
    print(f"Wrote results.json, table.md and {report.plot} in {options.output}")
    return report_failures(runs)


def import_runner() -> ModuleType:
    """Import `detrkit.experiments.runner`, which needs Dask.

    Raises:
        ValueError: Dask is not installed.
    """
    try:
        from . import runner
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        raise ValueError(f"ablate and compare need Dask, but {error.name} is not installed: {EXTRA}") from error
    return runner


def report_failures(runs: Sequence[Run]) -> bool:
    """Print one line for each run without a result; return whether all have one."""
    failed = [run for run in runs if run.result is None]
    for run in failed:
        reason = f"failed: {run.error}; see {run.folder / CONSOLE}" if run.error else "not run"
        print(f"{run.title}: {reason}", file=sys.stderr)
    return not failed


def list_runs(runs: Sequence[Run]) -> str:
    """A line for each run: whether it is finished, and its title."""
    return "\n".join(f"{'finished' if run.result else 'to do':9} {run.title}" for run in runs)
