"""`align-detr weights`: show what a file of weights holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = """\
Show what a file of weights holds, of this or another code base.

`inspect` prints the format of the file, the settings that belong to its weights, and the name of every tensor here. It
reads the header alone, and executes nothing in the file."""
EXAMPLES = (
    "align-detr weights inspect dino-4scale_r50_8xb2-12e_coco.pth",
    "align-detr weights inspect output/align_detr_tiny/model_final.pth",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr weights`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr weights")
    parser.add_argument("action", choices=("inspect",), metavar="inspect", help="the only action")
    parser.add_argument("file", metavar="FILE", help=".pth, .bin or .safetensors")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print a report on the file."""
    with command_line.errors_in_one_line():
        if not Path(args.file).exists():
            raise FileNotFoundError(f"no such file: {args.file}")
        from detrkit.weights import Report, convert, look_at

        conversion = convert(look_at(args.file))
        print("\n".join(Report(conversion.recognised, conversion.trace).lines()))


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
