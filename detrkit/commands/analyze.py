"""`align-detr analyze`: measure how well a detector's scores agree with its boxes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.commands import command_line
from detrkit.runtime.weight_files import ZOO

if TYPE_CHECKING:
    from detrkit.reports.alignment import Candidate

DESCRIPTION = """\
Measure how well a detector's scores agree with its boxes, for one checkpoint or several side by side.

It runs the test images of the config once through each model, and writes alignment.html, alignment.json and plots. Give
the folder of a training, or a CONFIG with --checkpoint. key=value changes every config that has the key."""
EXAMPLES = (
    "align-detr analyze output/align_detr_tiny",
    "align-detr analyze align_detr_tiny --checkpoint output/a/model_final.pth --compare output/b/model_final.pth",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr analyze`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr analyze")
    command_line.add_config(parser, "name or path of a config, or the folder of a training", metavar="CONFIG|FOLDER")
    command_line.add_checkpoint(parser, "weights (default: the config's train.init_checkpoint)")
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        default=[],
        metavar="[CONFIG:]FILE",
        help="further models: weights of the same config, of another CONFIG, or the folder of a training; the test "
        "images are the first config's",
    )
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="names of the models, in their order")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="(default: alignment/ in the training's folder, or in output/)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="images of one size at a time (default: %(default)s)"
    )
    parser.add_argument("--num-images", type=int, metavar="N", help="only the first N images")
    command_line.add_overrides(parser, "changes to all configs that have the key")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Check that options fit together, before anything is imported.

    Raises:
        ValueError: they do not.
        FileNotFoundError: a config or a checkpoint is not there.
    """
    if not args.config and not args.checkpoint:
        raise ValueError("no detector: give the folder of a training, or a config and --checkpoint")
    if args.names and len(args.names) != 1 + len(args.compare):
        raise ValueError(f"--names has {len(args.names)} names for {1 + len(args.compare)} models")
    if args.batch_size < 1 or (args.num_images is not None and args.num_images < 1):
        raise ValueError("--batch-size and --num-images are at least 1")
    command_line.check_exist(args.config, args.checkpoint)
    command_line.check_output_folder(args.output)
    for text in args.compare:
        command_line.check_exist(*split_pair(text, ""))


def split_pair(text: str, config: str) -> tuple[str, str]:
    """Split `CONFIG:FILE`; of `FILE` alone the config is `config`."""
    pair = re.fullmatch(r"(.+?\.(?:py|ya?ml)):(.+)", text)
    return (pair[1], pair[2]) if pair else (config, text)


def read_candidates(args: argparse.Namespace) -> tuple[list[Candidate], Path]:
    """Return the models that the options name, and the folder to write to."""
    from detrkit.config.load import load_configs
    from detrkit.inference.sources import find_named, load_named_config
    from detrkit.reports.alignment import Candidate, default_names

    config, checkpoint, folder = command_line.find_named(args)
    given = [(config, checkpoint)]
    for text in args.compare:
        is_whole = Path(text).is_dir() or text.startswith(ZOO)
        given.append(find_named(text)[:2] if is_whole else split_pair(text, config))
    configs = load_configs([load_named_config(config) for config, _ in given], args.overrides)
    candidates = []
    for (config, checkpoint), cfg in zip(given, configs, strict=True):
        checkpoint = checkpoint or cfg.train.get("init_checkpoint") or ""
        command_line.check_exist(None, checkpoint)
        candidates.append(Candidate("", config, checkpoint, cfg))
    for candidate, name in zip(candidates, args.names or default_names(candidates), strict=True):
        candidate.name = name
    return candidates, args.output or (folder or Path("output")) / "alignment"


def run(args: argparse.Namespace) -> None:
    """Write the page, and print its table."""
    with command_line.errors_in_one_line(), command_line.interrupts_end():
        check_options(args)
        from detrkit.reports.alignment import analyze, table_of

        candidates, output = read_candidates(args)
        print(table_of(analyze(candidates, output, args.num_images, args.batch_size)))
        print(f"Wrote {output / 'alignment.html'}, with its plots and alignment.json beside it")


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
