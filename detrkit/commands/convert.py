"""Convert a dataset to COCO's format, which the configs take, or clean one that has it.

    align-detr convert VOCdevkit/VOC2007 --output datasets/voc
    align-detr convert mine/data.yaml --output datasets/mine

Reads the layouts of COCO, Pascal VOC, YOLO, labelme, CVAT, VGG VIA, TensorFlow's CSV, Open Images and KITTI. The
dataset stays as it is; `align-detr train --data` does this by itself. Writes one annotation file per split, and says
what is wrong with the dataset: a line for each problem, of each kind the first few and their number. A summary and the
lines for a config follow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands.command_line import errors_in_one_line
from detrkit.datasets import convert_dataset
from detrkit.datasets.formats import FORMATS
from detrkit.datasets.voc import DIFFICULT


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the dataset's folder, or an annotation file")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the annotation files")
    parser.add_argument("--format", choices=FORMATS, help="layout (default: found out by the content)")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME",
        help="names in the order of their ids; objects of others are left out (default: the classes that occur, by "
        "name; COCO's by id, YOLO's as in data.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--difficult", choices=DIFFICULT, default="ignore",
        help="VOC's difficult objects: not trained on and ignored in evaluation, as VOC does (default), kept as all "
        "others, or left out, so that to find them is an error",
    )  # fmt: skip
    parser.add_argument(
        "--zero-based", action="store_true",
        help="take VOC's coordinates as they are; VOC itself counts pixels from 1: boxes reach from xmin - 1 to xmax",
    )  # fmt: skip
    parser.add_argument("--copy-images", action="store_true", help="copy the images too, to images/ in the output")
    parser.add_argument("--no-decode", action="store_true", help="trust that images are whole: only look at their size")
    parser.add_argument("--force", action="store_true", help="replace annotation files that are there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = vars(parse(argv))
    with errors_in_one_line():
        conversion = convert_dataset(decode=not args.pop("no_decode"), **args)
        for line in conversion.problems.report():
            print(line, file=sys.stderr)
        print(conversion.summary())
