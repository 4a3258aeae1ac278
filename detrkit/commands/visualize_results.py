"""Draw predictions beside ground truth, for a handful of images on one sheet."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands.command_line import errors_in_one_line
from detrkit.config.load import load_config
from detrkit.datasets import register_own_datasets
from detrkit.reports.sheet import draw_sheet, plural


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--input", type=Path, help="coco_instances_results.json of an evaluation", **required)
    parser.add_argument("--output", type=Path, help="the picture to write, .png or .jpg", **required)
    parser.add_argument("--dataset", default="tiny_coco_val", help="name under which the dataset is registered")
    parser.add_argument("--config-file", default="", help="a config that registers it, as those for own datasets do")
    parser.add_argument("--num", type=int, default=12, help="images on the sheet")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="leave out predictions that score less")
    parser.add_argument("--font", metavar="FILE", help="font file for all text (default: one with the letters)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with errors_in_one_line():
        register_own_datasets()
        if args.config_file:  # which registers its datasets
            load_config(args.config_file, [])
        count = draw_sheet(args.input, args.dataset, args.output, args.num, args.score_threshold, args.font)
        print(f"Wrote {plural(count, 'image')} of {args.dataset} to {args.output}")
