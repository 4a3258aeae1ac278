"""`align-detr make-data`: write a small dataset."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = "Write a small dataset in COCO's layout: drawn shapes, or a subset of a COCO folder."
EXAMPLES = (
    "align-detr make-data --synthetic",
    "align-detr make-data --synthetic --train 2000 --val 400 --size 192 --output datasets/shapes",
    "align-detr make-data --from datasets/coco --images 50",
)
MORE = """\
The drawn images hold striped circles, chequered squares and blotched triangles on greyish backgrounds. Colour and size
do not depend on the class. Later shapes hide parts of earlier ones; boxes, areas and polygons are those of the visible
pixels. Every 12th image has a crowd region (iscrowd=1), every 25th has no object. Image i depends on --seed, --size and
i alone, so a larger --train extends a smaller one.

A subset has --images images of each split, chosen at random. A tenth of them have crowd regions and one has no
objects, if the source has such images. Images are hard-linked where the file system allows it, otherwise copied."""
DRAWING = {
    "train": "training images (default: 1600)",
    "val": "validation images (default: 100)",
    "size": "side of the square images, in pixels (default: 128)",
}


def default_output() -> Path:
    """Return the folder of the drawn dataset."""
    return Path(os.environ.get("TINY_COCO_ROOT") or "datasets/tiny_coco").expanduser()


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr make-data`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, MORE, prog="align-detr make-data")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--synthetic", action="store_true", help="draw shapes")
    what.add_argument("--from", dest="source", type=Path, metavar="DIR", help="take a subset of this COCO folder")
    drawing = parser.add_argument_group("with --synthetic")
    for name, help in DRAWING.items():  # without defaults, so that the options can be refused with --from
        drawing.add_argument(f"--{name}", type=int, metavar="N", help=help)
    taking = parser.add_argument_group("with --from")
    taking.add_argument("--images", type=int, metavar="N", help="images of each split (required)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random choices (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder to write (default: the environment variable TINY_COCO_ROOT, else datasets/tiny_coco)",
    )
    parser.add_argument("--force", action="store_true", help="write into a folder that holds something else")
    return parser


def check_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exit with one line if an option belongs to the other kind of dataset."""
    for name in ("images",) if args.synthetic else DRAWING:
        if getattr(args, name) is not None:
            parser.error(f"--{name} does not go with {'--synthetic' if args.synthetic else '--from'}")
    if args.source is not None and args.images is None:
        parser.error("--from needs --images")


def run(args: argparse.Namespace) -> None:
    """Write the dataset, and print what it holds."""
    check_options(args, parser())
    started = time.perf_counter()
    output = args.output or default_output()
    with command_line.errors_in_one_line():
        from detrkit.datasets.small import make, summary

        options = {name: getattr(args, name) for name in ("images", *DRAWING) if getattr(args, name) is not None}
        print(summary(make(output, source=args.source, seed=args.seed, force=args.force, **options)))
        print(f"\nWrote {output} in {time.perf_counter() - started:.1f} s")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
