"""Options of the commands that train on a folder of annotated images."""

from __future__ import annotations

import argparse
from pathlib import Path

from detrkit.commands.choices import LAYOUTS


def add_folder_options(parser: argparse.ArgumentParser, data: str, unless: str) -> None:
    """Add `--data` and the options that go with it.

    Args:
        data: help of `--data`.
        unless: the option that sets the number of iterations instead of `--epochs`.
    """
    group = parser.add_argument_group("your own images")
    group.add_argument("--data", type=Path, metavar="FOLDER", help=data)
    group.add_argument("--format", choices=LAYOUTS, metavar="LAYOUT", help=f"of --data: {', '.join(LAYOUTS)}")
    group.add_argument("--classes", nargs="+", metavar="NAME", help="of --data, train on these classes alone")
    group.add_argument(
        "--epochs", type=int, metavar="N", help=f"passes over --data, if {unless} is not given (default: 50)"
    )


def check_folder_options(args: argparse.Namespace) -> None:
    """Raise ValueError if an option of a folder is given without `--data`, or there is less than one epoch."""
    others = {"--format": args.format, "--classes": args.classes, "--epochs": args.epochs}
    if args.data is None and (stray := [name for name, value in others.items() if value is not None]):
        raise ValueError(f"{stray[0]} is for a folder of images: give it by --data")
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs {args.epochs}: at least 1")
