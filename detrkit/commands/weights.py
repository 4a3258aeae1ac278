"""Weights of this and other code bases.

    align-detr weights inspect FILE

`inspect` prints the format of a file, the settings that belong to its weights, and the name of every tensor here. It
reads the header alone, and nothing in the file is executed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detrkit.commands.command_line import errors_in_one_line
from detrkit.weights import Report, convert, look_at


def inspect(args: argparse.Namespace) -> None:
    """Print what is known of a file of weights.

    Raises:
        ValueError: the file cannot be read, or not be used here.
    """
    conversion = convert(look_at(args.file))
    print("\n".join(Report(conversion.recognised, conversion.trace).lines()))


def parser() -> argparse.ArgumentParser:
    """The command's options; each subcommand sets `run`, which takes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("inspect", help="print what a file of weights is, and how it converts")
    command.add_argument("file", metavar="FILE", help=".pth, .bin or .safetensors")
    command.set_defaults(run=inspect)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with errors_in_one_line():
        args.run(args)
