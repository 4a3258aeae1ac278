"""`align-detr compare`: train detectors with Align-DETR's supervision and with their own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detrkit.commands import command_line
from detrkit.commands.experiment_options import add_options, options_of
from detrkit.commands.folder_options import add_folder_options, check_folder_options

DESCRIPTION = """\
Train detectors with Align-DETR's supervision and with their own, several seeds each, and compare them.

A pair is two configs that differ in the supervision; several pairs may have the same baseline. Give --data to compare
on your own annotated images. `key=value` is for all runs. After each training, align-detr analyze measures all decoder
layers of the model.

Every run is an `align-detr train` in its own folder. After an interruption or a failure the same command continues:
finished runs are kept, others resume from their last checkpoint. Writes results.json, table.md and comparison.png."""
EXAMPLES = (
    "align-detr compare --data FOLDER --epochs 20 --output output/which",
    "align-detr compare model.embed_dim=128 model.position_embedding.num_pos_feats=64 --seeds 1 2 3",
    "align-detr compare --pairs align_dab_detr_tiny:dab_detr_tiny --output output/dab",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr compare`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr compare")
    parser.add_argument(
        "--pairs",
        nargs="+",
        metavar="CONFIG:BASELINE",
        help="(default: the tiny DINO and H-DETR; with --data the config of `align-detr train --data` and its DINO)",
    )
    add_options(parser, [1, 2, 3], "output/detectors")
    add_folder_options(parser, "as for `align-detr train --data`", "--max-iter")
    return parser


def train(args: argparse.Namespace) -> bool:
    """Run the comparison; return whether all trainings succeeded."""
    check_folder_options(args)
    from detrkit.experiments.comparison import Folder, run_comparison

    data = Folder(args.data, args.format, args.classes, args.epochs) if args.data else None
    return run_comparison(args.pairs or (), options_of(args), data)


def run(args: argparse.Namespace) -> None:
    """Run the comparison; exit with status 1 unless all trainings succeeded."""
    command_line.finish(lambda: train(args), "the same command continues from here")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
