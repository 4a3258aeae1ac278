"""Train detectors with Align-DETR's supervision and with their own, several seeds each, and compare them.

    align-detr compare [--pairs CONFIG:BASELINE ...] [--seeds 1 2 3] [--max-iter N] [--jobs N] [--output FOLDER]
        [key=value ...]

A pair is two configs that differ in the supervision; several pairs may have the same baseline. `key=value` is for all
runs. After each training, align-detr analyze measures all decoder layers of the model.

Every run is an `align-detr train` in its own folder. After an interruption or a failure the same command continues:
finished runs are kept, others resume from their last checkpoint. Writes results.json, table.md and comparison.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detrkit.commands.command_line import finish


def parser() -> argparse.ArgumentParser:
    """The options of `align-detr compare`."""
    from detrkit.commands.experiment_options import add_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", metavar="CONFIG:BASELINE", help="(default: the tiny DINO and H-DETR)")
    add_options(parser, [1, 2, 3], "output/detectors")
    return parser


def run(args: argparse.Namespace) -> bool:
    """Run the comparison; return whether all trainings succeeded."""
    from detrkit.commands.experiment_options import options_of
    from detrkit.experiments.comparison import run_comparison

    return run_comparison(args.pairs or (), options_of(args))


def main(argv: Sequence[str] | None = None) -> None:
    from detrkit.commands.words import parse_words

    args = parse_words(parser(), argv)
    finish(lambda: run(args), "the same command goes on from here")
