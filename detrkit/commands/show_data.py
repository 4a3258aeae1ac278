"""`align-detr show-data`: draw training images as a config augments them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = "Draw training images with their boxes on one sheet, as the config augments them."
EXAMPLES = (
    "align-detr show-data align_detr_tiny --output sheet.png",
    "align-detr show-data align_detr_tiny --output sheet.png --num 9 --columns 3 train.mix.mosaic=1.0",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr show-data`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr show-data")
    command_line.add_config(parser, "name or path of a config, or the folder of a training", metavar="CONFIG|FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="image to write, .png or .jpg")
    parser.add_argument("--num", type=int, default=16, metavar="N", help="number of images (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=4, metavar="N", help="images in a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other images, augmented in other ways")
    parser.add_argument("--font", metavar="FILE", help="font file for all text (default: one with the letters)")
    command_line.add_overrides(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Draw the sheet."""
    with command_line.errors_in_one_line():
        if not args.config:
            raise ValueError("no config: give its name or path, or the folder of a training")
        command_line.check_exist(args.config, None)
        command_line.check_output_picture(args.output)
        from detrkit.config.load import load_config
        from detrkit.datasets import register_own_datasets
        from detrkit.reports.data_sheet import draw_training_images
        from detrkit.training.preflight import check_data

        register_own_datasets()
        folder = Path(args.config)
        cfg = load_config(str(folder / "config.yaml") if folder.is_dir() else args.config, args.overrides)
        check_data(cfg, ("train",))
        count = draw_training_images(cfg, args.output, args.num, args.columns, args.seed, args.font)
        print(f"Wrote {count} training images to {args.output}")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
