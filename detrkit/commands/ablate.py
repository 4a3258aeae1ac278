"""`align-detr ablate`: train with a grid of settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detrkit.commands import command_line
from detrkit.commands.experiment_options import add_options, options_of

DESCRIPTION = """\
Train with a grid of settings, several seeds each, and compare the differences with the noise between seeds.

Each value of the grid is tried alone, with all else as in CONFIG; `--full` tries all combinations. `--chain` changes
one option after the other and keeps the changes, as papers do for the parts of a method. A short name is an option of
the criterion: alpha is model.criterion.alpha. Others are written in full: optimizer.lr=1e-4,2e-4. The baseline is
another config that is trained as well. `key=value` comes before `--grid` and is for all runs; changes of
model.criterion are not for the baseline.

Every run is an `align-detr train` in its own folder. After an interruption or a failure the same command continues:
finished runs are kept, others resume from their last checkpoint. Writes results.json, table.md and ablation.png."""
EXAMPLES = (
    "align-detr ablate train.max_iter=400 --grid alpha=0,0.25,0.5 --seeds 1 2 3",
    "align-detr ablate align_detr_tiny --chain alpha=0 k=1 --output output/chain",
)
GRID = "alpha, k, tau, gamma, loss_class_type"  # names in detrkit.experiments.ablation.GRID


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr ablate`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr ablate")
    command_line.add_config(parser, "name or path of a config (default: align_detr_tiny)", default="align_detr_tiny")
    parser.add_argument("--baseline", default="dino_tiny", metavar="CONFIG", help="(default: %(default)s)")
    parser.add_argument("--no-baseline", action="store_true", help="train no baseline")
    grid = parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        metavar="NAME=V,V",
        help=f"what to vary (default: {GRID}, in several values each)",
    )
    parser.add_argument("--full", action="store_true", help="all combinations instead of one change at a time")
    chain = parser.add_argument(
        "--chain", nargs="+", metavar="NAME=V", help="what to change one after the other, and keep so"
    )
    grid.keeps_changes = chain.keeps_changes = True
    add_options(parser, [0, 1, 2], "output/ablation")
    return parser


def train(args: argparse.Namespace) -> bool:
    """Run the ablation; return whether all trainings succeeded."""
    from detrkit.experiments.ablation import run_ablation

    return run_ablation(
        args.config,
        None if args.no_baseline else args.baseline,
        options_of(args),
        grid=args.grid or (),
        full=args.full,
        chain=args.chain or (),
    )


def run(args: argparse.Namespace) -> None:
    """Run the ablation; exit with status 1 unless all trainings succeeded."""
    command_line.finish(lambda: train(args), "the same command continues from here")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
