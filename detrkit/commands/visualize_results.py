"""`align-detr visualize-results`: draw predictions beside ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = "Draw predictions beside ground truth, for a handful of images on one sheet."
EXAMPLES = (
    "align-detr visualize-results --input output/demo/coco_instances_results.json --output sheet.png",
    "align-detr visualize-results --input output/mine/coco_instances_results.json --output sheet.png "
    "--dataset mine_val --config-file output/mine/config.py",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr visualize-results`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr visualize-results")
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="coco_instances_results.json of an evaluation"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="image to write, .png or .jpg")
    parser.add_argument(
        "--dataset", default="tiny_coco_val", metavar="NAME", help="a registered dataset (default: %(default)s)"
    )
    config = parser.add_argument("--config-file", default="", metavar="CONFIG", help="a config that registers it")
    config.completer = command_line.complete_config
    parser.add_argument("--num", type=int, default=12, metavar="N", help="images on the sheet (default: %(default)s)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="X", help="lowest score to draw (default: %(default)s)"
    )
    parser.add_argument("--font", metavar="FILE", help="font file for all text (default: one with the letters)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Draw the sheet."""
    with command_line.errors_in_one_line():
        command_line.check_exist(args.config_file, None)
        if not args.input.is_file():
            raise FileNotFoundError(f"no such file: {args.input}")
        from detrkit.config.load import load_config
        from detrkit.datasets import register_own_datasets
        from detrkit.reports.sheet import draw_sheet, plural

        register_own_datasets()
        if args.config_file:  # which registers its datasets
            load_config(args.config_file, [])
        count = draw_sheet(args.input, args.dataset, args.output, args.num, args.score_threshold, args.font)
        print(f"Wrote {plural(count, 'image')} of {args.dataset} to {args.output}")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
