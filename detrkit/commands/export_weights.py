"""`align-detr export-weights`: write a checkpoint's weights alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line
from detrkit.commands.choices import WEIGHT_FAMILIES, WEIGHT_FORMATS

DESCRIPTION = """\
Write a checkpoint's weights alone, without optimizer and training state, to share them or to start from them.

A .pth file holds {"model": state dict}, which detectron2, detrex and this project load; a .safetensors file holds the
state dict. Co-DETR's auxiliary heads, which only training needs, are left out. The written file is read again and
compared."""
EXAMPLES = (
    "align-detr export-weights --checkpoint output/model_final.pth --output weights.safetensors",
    "align-detr export-weights --checkpoint output/model_final.pth --output backbone.safetensors --only backbone",
)
FAMILIES = ", ".join(WEIGHT_FAMILIES)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr export-weights`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr export-weights")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="such as model_final.pth, or zoo:NAME")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".pth or .safetensors")
    parser.add_argument("--ema", action="store_true", help="the moving average instead of the weights themselves")
    parser.add_argument("--half", action="store_true", help="floating-point numbers in float16")
    parser.add_argument(
        "--format",
        choices=WEIGHT_FORMATS,
        default="detrex",
        metavar="NAME",
        help=f"names and layout: {FAMILIES}, or a single format as `align-detr weights inspect` names it (default: "
        "%(default)s). The checkpoint may be of any of them too",
    )
    parser.add_argument(
        "--only",
        metavar="MODULE",
        help="this part of the model, such as backbone; train.init_checkpoint takes the file for any detector that "
        "has the part",
    )
    command_line.add_config(parser, "check that the weights are of this config's model")
    command_line.add_overrides(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the file, and print a table of it."""
    with command_line.errors_in_one_line():
        command_line.check_exist(args.config, args.checkpoint, "config")
        command_line.check_output_file(args.output)
        from detrkit.inference.weights_file import export_weights
        from detrkit.weights import local_path

        table = export_weights(
            Path(local_path(args.checkpoint)),
            args.output,
            format=args.format,
            ema=args.ema,
            half=args.half,
            only=args.only,
            config=args.config,
            overrides=args.overrides,
        )
        print(table)


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
