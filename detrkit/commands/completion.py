"""`align-detr completion`: completion by argcomplete, which reads the options from the commands' parsers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detrkit.commands import command_line

DESCRIPTION = """\
Print the shell code that completes commands, options, names of configs and of published weights, and the keys and
values of a config.

Put one of the examples into ~/.bashrc or ~/.zshrc; for fish, write the output to
~/.config/fish/completions/align-detr.fish."""
EXAMPLES = (
    'eval "$(align-detr completion bash)"',
    'eval "$(align-detr completion zsh)"',
    "align-detr completion fish",
)
SHELLS = ("bash", "zsh", "fish")
MISSING = "completion needs a package: pip install argcomplete"


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr completion`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr completion")
    parser.add_argument("shell", choices=SHELLS, help=f"{', '.join(SHELLS)}")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the code."""
    with command_line.errors_in_one_line():
        try:
            import argcomplete
        except ImportError as error:
            raise ValueError(MISSING) from error
        print(argcomplete.shellcode(["align-detr"], shell=args.shell))


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
