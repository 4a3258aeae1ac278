"""Options that `align-detr ablate` and `align-detr compare` have in common."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.commands import command_line

if TYPE_CHECKING:
    from detrkit.experiments.experiment import Options


def add_options(parser: argparse.ArgumentParser, seeds: Sequence[int], output: str) -> None:
    """Add the options; `seeds` and `output` are their defaults."""
    default = " ".join(map(str, seeds))
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, metavar="N", help=f"(default: {default})")
    parser.add_argument("--max-iter", type=int, metavar="N", help="iterations of each run (default: the config's)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, or per core)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="Dask scheduler whose workers train: tcp://host:8786")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only list the runs")
    command_line.add_overrides(parser, "changes to the configs")
    parser.set_defaults(words=())  # for the table, which says by which command it was made


def options_of(args: argparse.Namespace) -> Options:
    """The options of `args` as the library takes them."""
    from detrkit.experiments.experiment import Options
    from detrkit.runtime.program import program

    return Options(
        output=args.output,
        seeds=args.seeds,
        max_iter=args.max_iter,
        jobs=args.jobs,
        cluster=args.cluster,
        dry_run=args.dry_run,
        overrides=args.overrides,
        command=shlex.join([*program(), *args.words]),
    )
