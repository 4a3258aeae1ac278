"""`align-detr errors`: count a detector's errors by kind, and choose its score threshold."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = """\
Count a detector's errors by kind, and choose its score threshold.

It reads the last evaluation in the folder of a training, and runs no model. It writes errors.json there: precision,
recall and F1 over the threshold, the threshold of the highest F1 for each class and for all, a confusion matrix, and
the AP that each kind of error costs. `align-detr demo`, `align-detr export` and Detector use the threshold."""
EXAMPLES = (
    "align-detr errors output/align_detr_tiny",
    "align-detr errors output/align_detr_tiny --results other/coco_instances_results.json --output other/errors.json",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr errors`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr errors")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of a training")
    command_line.add_evaluation(parser)
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="detections of the test images in COCO's results format (default: those of the last evaluation)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: errors.json in the folder)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the file, and print its tables."""
    with command_line.errors_in_one_line():
        if not args.folder.is_dir():
            raise FileNotFoundError(f"no such folder: {args.folder}")
        command_line.check_exist(args.config_file, None, "config")
        command_line.check_output_file(args.output)
        from detrkit.inference.sources import ERRORS
        from detrkit.reports.errors import errors_of_run, errors_table

        summary = errors_of_run(
            args.folder, config=args.config_file, results=args.results, iou_threshold=args.iou, output=args.output
        )
        print(errors_table(summary))
        print(f"\nWrote {args.output or args.folder / ERRORS}")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
