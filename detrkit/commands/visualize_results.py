"""`align-detr visualize-results`: draw predictions beside ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = """\
Draw predictions beside ground truth, for a handful of images on one sheet.

Give the folder of a training after an evaluation; or --input, --dataset and, for own data, the config of the data."""
EXAMPLES = (
    "align-detr visualize-results output/mine --output sheet.png",
    "align-detr visualize-results --input output/demo/coco_instances_results.json --output sheet.png",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr visualize-results`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr visualize-results")
    command_line.add_config(
        parser, "the folder of a training, or a config that registers the dataset", metavar="FOLDER|CONFIG"
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="coco_instances_results.json of an evaluation (default: that of the folder)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="image to write, .png or .jpg")
    parser.add_argument(
        "--dataset", metavar="NAME", help="a registered dataset (default: the config's test data, else tiny_coco_val)"
    )
    parser.add_argument("--num", type=int, default=12, metavar="N", help="images on the sheet (default: %(default)s)")
    parser.add_argument(
        "--score-threshold",
        type=command_line.score,
        default=0.3,
        metavar="X",
        help="lowest score to draw; the best predictions are drawn in any case (default: %(default)s)",
    )
    parser.add_argument("--font", metavar="FILE", help="font file for all text (default: one with the letters)")
    command_line.add_overrides(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Draw the sheet."""
    with command_line.errors_in_one_line():
        command_line.check_exist(args.config, None, "folder or config")
        command_line.check_output_picture(args.output)
        folder = Path(args.config) if args.config and Path(args.config).is_dir() else None
        results = args.input or (folder and folder / "coco_instances_results.json")
        if results is None:
            raise ValueError("no results: give the folder of a training, or --input")
        if not results.is_file():
            raise FileNotFoundError(f"no such file: {results}; `align-detr eval` writes it")
        from detrkit.config.load import load_config
        from detrkit.datasets import register_own_datasets
        from detrkit.datasets.classes import dataset_names
        from detrkit.reports.sheet import draw_sheet
        from detrkit.runtime.text import plural

        register_own_datasets()
        dataset = args.dataset or "tiny_coco_val"
        if args.config:  # loading it registers its datasets
            cfg = load_config(str(folder / "config.yaml") if folder else args.config, args.overrides)
            dataset = args.dataset or dataset_names(cfg, "test")[0]
        count = draw_sheet(results, dataset, args.output, args.num, args.score_threshold, args.font)
        print(f"Wrote {plural(count, 'image')} of {dataset} to {args.output}")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
