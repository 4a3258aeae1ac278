"""`align-detr explore`: a page to look at a detector's mistakes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = """\
Write a page to look at a detector's mistakes: images with ground truth and detections, to filter by class, score, IoU
and kind of error, and to sort by error. It is one HTML file with a folder of small copies of the images. A browser
opens it without a server.

Give the folder of a training after an evaluation; or detections, annotations and images in COCO's format."""
EXAMPLES = (
    "align-detr explore output/mine",
    "align-detr explore output/mine --loss --num 500",
    "align-detr explore --predictions results.json --annotations val.json --images val2017",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr explore`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr explore")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="the folder of a training")
    command_line.add_evaluation(parser)
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="detections in COCO's results format (default: those of the folder's last evaluation)",
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="ground truth in COCO's format")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder that the annotations' file names are in")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: explore.html in the folder, or beside the predictions)",
    )
    parser.add_argument(
        "--min-score",
        type=command_line.score,
        default=0.05,
        metavar="X",
        help="detections that score less are left out (default: %(default)s)",
    )
    parser.add_argument("--num", type=int, metavar="N", help="only the N images with the most errors (default: all)")
    parser.add_argument(
        "--loss", action="store_true", help="sort by the criterion's loss too: runs the final weights on every image"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    with command_line.errors_in_one_line():
        if args.folder and not args.folder.is_dir():
            raise FileNotFoundError(f"no such folder: {args.folder}")
        command_line.check_exist(args.config_file, None, "config")
        command_line.check_output_file(args.output)
        from detrkit.reports.explore import explore
        from detrkit.runtime.text import plural

        done = explore(
            args.folder,
            predictions=args.predictions,
            annotations=args.annotations,
            images=args.images,
            config=args.config_file,
            output=args.output,
            iou_threshold=args.iou,
            min_score=args.min_score,
            num_images=args.num,
            with_loss=args.loss,
        )
        if done.unreadable:
            print(f"{plural(len(done.unreadable), 'image')} cannot be read; the first: {done.unreadable[0]}")
        print(f"Wrote {plural(done.images, 'image')} to {done.path}")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
