"""Published weights, and weights of this and other code bases.

    align-detr weights list [--model WORD] [--backbone WORD] [--all]
    align-detr weights get NAME ...
    align-detr weights inspect FILE

`list` shows what there is. Every command and `Detector` take `zoo:NAME` for a file, and download it when it is first
used; `get` does so beforehand, and prints where the file is: in $ALIGN_DETR_CACHE, by default ~/.cache/align_detr. Own
weights and mirrors are entries of a file that $ALIGN_DETR_ZOO names.

`inspect` prints the format of a file, the settings that belong to its weights, and the name of every tensor here. It
reads the header alone, and nothing in the file is executed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tabulate import tabulate

from detrkit.commands.command_line import errors_in_one_line, interrupts_end
from detrkit.weights import Report, convert, look_at, zoo
from detrkit.weights.download import check_hash

HEADER = ("name", "model", "backbone", "AP", "from", "licence", "state")
NOTE = """\
AP: box AP on COCO val2017 as published, in %; none of them was reproduced here. State: here: on this machine;
by hand: a browser downloads it, and `align-detr weights get NAME` says from where and to where."""


def list_weights(args: argparse.Namespace) -> None:
    """Print a table of published weights.

    Raises:
        ValueError: there are none of this model and backbone.
    """
    found = zoo.select(args.model, args.backbone)
    entries = [entry for entry in found if args.all or not entry.lacks]
    if not entries:
        more = f"; --all lists {len(found)} that this project cannot use" if found else ""
        raise ValueError(f"no published weights have --model {args.model!r} and --backbone {args.backbone!r}{more}")
    rows = [
        (e.name, e.detector, e.backbone, e.ap, e.format, e.licence, state(e))
        for e in sorted(entries, key=lambda entry: (entry.detector, entry.backbone, entry.name))
    ]
    print(tabulate(rows, HEADER, floatfmt=".1f", missingval=""))
    hidden = len(found) - len(entries)
    print(f"\n{NOTE}" + (f"\n{hidden} more need what this project does not have: --all lists them." if hidden else ""))


def state(entry: zoo.ZooEntry) -> str:
    """Whether weights are on this machine, and what they lack."""
    if entry.lacks:
        return f"needs {entry.lacks}"
    if entry.cached:
        return "here"
    return "by hand" if entry.is_by_hand else ""


def get(args: argparse.Namespace) -> None:
    """Download published weights, and print where they are. Those that are there are checked.

    Raises:
        ValueError: there is no such name.
        OSError: a file cannot be downloaded, or is damaged.
    """
    for name in args.names:
        entry = zoo.find_entry(name)
        if entry.cached:
            check_hash(entry.cached, entry.sha256, str(entry.cached))
        path = zoo.get(name)
        checked = f"SHA-256 begins with {entry.sha256}, as published" if entry.sha256 else "no hash is published"
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {checked}; licence {entry.licence or 'unknown'}")
        if entry.note:
            print(f"note: {entry.note}")


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
    command = commands.add_parser("list", help="list published weights")
    command.add_argument("--model", default="", metavar="WORD", help="only detectors with this in their name")
    command.add_argument("--backbone", default="", metavar="WORD", help="only backbones with this in their name")
    command.add_argument("--all", action="store_true", help="also those that this project cannot use")
    command.set_defaults(run=list_weights)
    command = commands.add_parser("get", help="download published weights")
    command.add_argument("names", nargs="+", metavar="NAME", help="as `list` prints it, with or without zoo:")
    command.set_defaults(run=get)
    command = commands.add_parser("inspect", help="print what a file of weights is, and how it converts")
    command.add_argument("file", metavar="FILE", help=".pth, .bin or .safetensors; zoo:NAME; hf://org/name/file")
    command.set_defaults(run=inspect)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with errors_in_one_line(), interrupts_end("The download goes on where it stopped: run the command again."):
        args.run(args)
