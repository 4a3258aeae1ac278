"""List the configs that come with the project, and the baselines; every command takes them by name.

    align-detr configs [WORD ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tabulate import tabulate

from detrkit.config.catalogue import ENTRIES, NOTE, config_files

HEADER = ("config", "model", "backbone", "schedule", "parameters", "paper AP")


def table(words: Sequence[str] = ()) -> str:
    """The configs whose names contain all of `words`.

    Raises:
        ValueError: there is none.
    """
    names = [name for name in config_files() if all(word in name for word in words)]
    if not names:
        raise ValueError(f"no config has {' and '.join(words)} in its name")
    rows = [[name, *ENTRIES[name]] for name in names]
    text = tabulate(rows, HEADER, floatfmt=("", "", "", "", ".2f", ".1f"), missingval="")
    return f"{text}\n\n{NOTE}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only configs with this in their names, such as tiny")
    parser.add_argument("--paths", action="store_true", help="files instead of the table")
    args = parser.parse_args(argv)
    try:
        text = table(args.words)
    except ValueError as problem:
        sys.exit(f"error: {problem}")
    if args.paths:
        text = "\n".join(str(file) for name, file in config_files().items() if all(word in name for word in args.words))
    print(text)
