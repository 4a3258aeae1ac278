"""`align-detr model`: count a detector's parameters, multiply-adds and activations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detrkit.commands import command_line

DESCRIPTION = """\
Count a detector's parameters, multiply-adds and activations, module by module, for one image of a given size.

It runs on the CPU, with random weights. One FLOP is one multiply-add, as in the tables of papers."""
EXAMPLES = (
    "align-detr model align_detr_tiny --size 128 128",
    "align-detr model dino_tiny --tasks parameter --depth 1 model.num_queries=50",
)
TASKS = ("parameter", "flop", "activation", "structure")


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr model`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr model")
    command_line.add_config(parser)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[1280, 800],
        metavar=("WIDTH", "HEIGHT"),
        help="of the image, in pixels (default: 1280 800)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS[:3]),
        metavar="TASK",
        help=f"of {', '.join(TASKS)} (default: the first three)",
    ).completer = lambda **_: list(TASKS)
    parser.add_argument("--depth", type=int, default=2, metavar="N", help="levels of modules in the table (default: 2)")
    command_line.add_overrides(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the tables."""
    if unknown := set(args.tasks) - set(TASKS):
        parser().error(f"--tasks: there is no {min(unknown)}; there are {', '.join(TASKS)}")
    with command_line.errors_in_one_line():
        if not args.config:
            raise ValueError("no config: `align-detr configs` lists them")
        if min(args.size) < 1 or args.depth < 0:
            raise ValueError(f"--size {args.size[0]} {args.size[1]} --depth {args.depth}: at least 1, 1 and 0")
        command_line.check_exist(args.config, None, "config")
        from detrkit.analysis.complexity import tables
        from detrkit.config.load import load_config
        from detrkit.training.loading import load_detector

        cfg = load_config(args.config, args.overrides)
        if "train" in cfg:
            cfg.train.device = "cpu"
        model = load_detector(cfg, "")
        print(tables(model, args.config, size=tuple(args.size), tasks=args.tasks, depth=args.depth))


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
