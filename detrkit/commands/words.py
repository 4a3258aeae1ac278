"""Command lines of a config, options and `key=value` in any order."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detrkit.commands.command_line import take_overrides


def add_config(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Add the config as the first word, or as the option `--config-file`."""
    text = f"name or path of the config (default: {default})" if default else "name or path of the config"
    parser.add_argument("config", nargs="?", default="", metavar="CONFIG", help=text)
    parser.add_argument("--config-file", default=default, metavar="CONFIG", help="the same as an option")


def parse_words(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, lists: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse a command line.

    Args:
        parser: takes `key=value` as `opts`, and perhaps a config by `add_config`.
        argv: the words; None for those of the command line.
        lists: options that take any number of words, and so the `key=value` after them, which are moved to `opts`.

    Returns:
        The arguments. `config_file` is the config, `opts` holds all `key=value`, `words` the words as they were given.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_intermixed_args(words)
    overrides: list[str] = []
    plain = [word for word in (getattr(args, "config", ""), *args.opts) if word]
    for option in (plain, *(getattr(args, name) for name in lists)):
        take_overrides(option, overrides)
    overrides += [word for word in plain if word.startswith("~")]
    plain = [word for word in plain if not word.startswith("~")]
    if plain and hasattr(args, "config"):
        args.config_file = plain.pop(0)
    if plain:
        parser.error(f"unrecognized arguments: {' '.join(plain)}")
    args.opts, args.words = overrides, words
    return args
