"""`align-detr weights`: list and download published weights, and show what a file of weights holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = """\
List and download published weights, and show what a file of weights holds, of this or another code base.

Every command and `Detector` take zoo:NAME in place of a file, and download it at its first use."""
EXAMPLES = (
    "align-detr weights list --model align --backbone r50",
    "align-detr weights get align_detr_r50_4scale_12ep",
    "align-detr weights inspect dino-4scale_r50_8xb2-12e_coco.pth",
)
LIST = "List published weights."
GET = """\
Download published weights, check their hash, and print where they are: in $ALIGN_DETR_CACHE, by default
~/.cache/align_detr. Own weights and mirrors are entries of a file that $ALIGN_DETR_ZOO names."""
INSPECT = """\
Print the format of a file, the settings that belong to its weights, and the name of every tensor here. Only the header
of the file is read, and nothing in it is executed."""
HEADER = ("name", "model", "backbone", "AP", "from", "licence", "state")
NOTE = """\
AP: box AP on COCO val2017 as published, in %; no value was reproduced here. State "here": on this machine. State "by
hand": only a browser can download it; `align-detr weights get NAME` says from where and to where."""


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr weights`; each action sets `action`, the function that performs it."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr weights")
    actions = parser.add_subparsers(required=True, metavar="ACTION", parser_class=command_line.CommandParser)
    action = actions.add_parser("list", help="list published weights", description=LIST)
    action.add_argument("--model", default="", metavar="WORD", help="only detectors with this in their name")
    action.add_argument("--backbone", default="", metavar="WORD", help="only backbones with this in their name")
    action.add_argument("--all", action="store_true", help="also weights that this project cannot use")
    action.set_defaults(action=list_weights)
    action = actions.add_parser("get", help="download published weights", description=GET)
    action.add_argument("names", nargs="+", metavar="NAME", help="as `list` prints it, with or without zoo:")
    action.set_defaults(action=get)
    action = actions.add_parser("inspect", help="show what a file of weights holds", description=INSPECT)
    action.add_argument("file", metavar="FILE", help=".pth, .bin or .safetensors; zoo:NAME; hf://org/name/file")
    action.set_defaults(action=inspect)
    return parser


def list_weights(args: argparse.Namespace) -> None:
    """Print a table of published weights.

    Raises:
        ValueError: there are none of this model and backbone.
    """
    from tabulate import tabulate

    from detrkit.weights import zoo

    selected = zoo.select(args.model, args.backbone)
    entries = [entry for entry in selected if args.all or not entry.lacks]
    if not entries:
        more = f"; --all lists {len(selected)} that this project cannot use" if selected else ""
        raise ValueError(f"no published weights have --model {args.model!r} and --backbone {args.backbone!r}{more}")
    rows = [
        (e.name, e.detector, e.backbone, e.ap, e.format, e.licence, e.state)
        for e in sorted(entries, key=lambda entry: (entry.detector, entry.backbone, entry.name))
    ]
    print(tabulate(rows, HEADER, floatfmt=".1f", missingval=""))
    hidden = len(selected) - len(entries)
    print(f"\n{NOTE}" + (f"\n{hidden} more cannot be used here: --all lists them, and why." if hidden else ""))


def get(args: argparse.Namespace) -> None:
    """Download published weights, and print where they are. Those on this machine are checked.

    Raises:
        ValueError: there is no such name.
        OSError: a file cannot be downloaded, or is damaged.
    """
    from detrkit.weights import zoo
    from detrkit.weights.download import check_hash

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
    """Print a report on the file.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    from detrkit.runtime.weight_files import is_remote

    if not is_remote(args.file) and not Path(args.file).exists():
        raise FileNotFoundError(f"no such file: {args.file}")
    from detrkit.inference.sources import describe_own_weights
    from detrkit.weights import Report, convert, look_at

    recognised = look_at(args.file)
    conversion = convert(recognised)
    lines = Report(conversion.recognised, conversion.trace).lines()
    own = [] if recognised.format else describe_own_weights(args.file)
    print("\n".join([*lines, *own]))


def run(args: argparse.Namespace) -> None:
    """Perform the action."""
    advice = "The download continues where it stopped: run the command again."
    with command_line.errors_in_one_line(), command_line.interrupts_end(advice):
        args.action(args)


def main(argv: Sequence[str] | None = None) -> None:
    run(parser().parse_args(argv))
