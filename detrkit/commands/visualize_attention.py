"""`align-detr visualize-attention`: show where the branches of SD-DETR's decoder attend."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = """\
Show where the branches of SD-DETR's decoder attend.

For each image it writes a sheet: the best detections in rows, the class and the box branch side by side. It shows the
last layer's attention (mean of the heads), the salient points of the branch, and the detected box. Conditional DETR and
DAB-DETR, which have one branch, are shown too."""
EXAMPLES = (
    "align-detr visualize-attention output/sd_detr_tiny --input datasets/tiny_coco/val2017",
    "align-detr visualize-attention sd_detr_tiny --checkpoint output/sd_detr_tiny/model_final.pth --input a.jpg",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr visualize-attention`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr visualize-attention")
    command_line.add_config(
        parser, "the folder of a training, an exported .safetensors file, or a config", metavar="FOLDER|FILE|CONFIG"
    )
    command_line.add_checkpoint(parser, "weights: .pth or .safetensors")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders, quoted globs")
    parser.add_argument("--output", type=Path, default=Path("output/attention"), help="folder (default: %(default)s)")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="detections of an image (default: %(default)s)")
    command_line.add_overrides(parser)
    return parser


def visualize(args: argparse.Namespace) -> bool:
    """Write the sheets; return whether every input was read."""
    if args.top < 1:
        raise ValueError("--top is at least 1")
    command_line.check_exist(args.config, args.checkpoint, "folder, file or config")
    command_line.check_output_folder(args.output)
    config, checkpoint, _ = command_line.find_named(args)
    if not checkpoint:
        raise ValueError("no detector: give the folder of a training, or a config and --checkpoint")
    from detrkit.reports.attention_sheet import write_sheets

    written, failed = write_sheets(config, checkpoint, args.input, args.output, args.top, args.overrides)
    print(f"{written} sheets in {args.output}")
    return not failed


def run(args: argparse.Namespace) -> None:
    """Write the sheets; exit with status 1 if an input could not be read."""
    command_line.finish(lambda: visualize(args))


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
