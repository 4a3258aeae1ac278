"""`align-detr convert`: convert a dataset to COCO's format, which the configs take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line
from detrkit.commands.choices import DIFFICULT, LAYOUTS

DESCRIPTION = """\
Convert a dataset to COCO's format, which the configs take, or clean one that has it.

It reads the layouts of COCO, Pascal VOC, YOLO, labelme, CVAT, VGG VIA, TensorFlow's CSV, Open Images and KITTI. The
dataset is not changed. The output folder gets one annotation file per split. The mistakes in the dataset are listed,
the first few of each kind; a summary and the lines for a config follow. `align-detr train --data` converts too."""
EXAMPLES = (
    "align-detr convert VOCdevkit/VOC2007 --output datasets/voc",
    "align-detr convert mine/data.yaml --output datasets/mine",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr convert`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr convert")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the dataset's folder, or an annotation file")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the annotation files")
    parser.add_argument(
        "--format", choices=LAYOUTS, metavar="LAYOUT", help=f"{', '.join(LAYOUTS)} (default: recognised)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="names in the order of their ids; objects of other classes are left out (default: the classes that occur, "
        "by name; COCO's by id, YOLO's as in data.yaml)",
    )
    parser.add_argument(
        "--difficult",
        choices=DIFFICULT,
        default="ignore",
        help="VOC's difficult objects: ignore (not trained on, and ignored in evaluation, as VOC does; default), keep "
        "(as all others), or drop (detecting them is an error)",
    )
    parser.add_argument(
        "--zero-based",
        action="store_true",
        help="take VOC's coordinates as they are. By default they count pixels from 1: boxes reach from xmin - 1 to "
        "xmax",
    )
    parser.add_argument("--copy-images", action="store_true", help="copy the images too, to images/ in the output")
    parser.add_argument("--no-decode", action="store_true", help="read the size of images only, do not decode them")
    parser.add_argument("--force", action="store_true", help="replace annotation files that are there")
    return parser


def run(args: argparse.Namespace) -> None:
    """Convert the dataset, and print its mistakes and a summary."""
    with command_line.errors_in_one_line():
        if not args.source.exists():
            raise FileNotFoundError(f"no such dataset: {args.source}")
        command_line.check_output_folder(args.output)
        from detrkit.datasets import convert_dataset

        options = vars(args)
        conversion = convert_dataset(decode=not options.pop("no_decode"), **options)
        for line in conversion.problems.report():
            print(line, file=sys.stderr)
        print(conversion.summary())


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
