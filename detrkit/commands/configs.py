"""`align-detr configs`: list the configs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detrkit.commands import command_line

DESCRIPTION = "List the configs that come with the project, and the baselines; every command takes them by name."
EXAMPLES = ("align-detr configs tiny", "align-detr configs align r50 --paths")
HEADER = ("config", "model", "backbone", "schedule", "parameters", "paper AP")


def table(words: Sequence[str] = ()) -> str:
    """Return a table of the configs whose names contain all of `words`.

    Raises:
        ValueError: there is none.
    """
    from tabulate import tabulate

    from detrkit.config.catalogue import ENTRIES, NOTE

    rows = [[name, *ENTRIES[name]] for name in _matching(words)]
    text = tabulate(rows, HEADER, floatfmt=("", "", "", "", ".2f", ".1f"), missingval="")
    return f"{text}\n\n{NOTE}"


def _matching(words: Sequence[str]) -> dict:
    from detrkit.config.catalogue import config_files

    files = {name: path for name, path in config_files().items() if all(word in name for word in words)}
    if not files:
        raise ValueError(f"no config has {' and '.join(words)} in its name")
    return files


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr configs`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr configs")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only configs with this in their names, such as tiny")
    parser.add_argument("--paths", action="store_true", help="files instead of the table")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table, or the files."""
    with command_line.errors_in_one_line():
        print("\n".join(map(str, _matching(args.words).values())) if args.paths else table(args.words))


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
