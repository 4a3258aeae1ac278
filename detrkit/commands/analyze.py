"""Measure how well a detector's scores agree with its boxes, for one checkpoint or several side by side.

    align-detr analyze --config-file CONFIG --checkpoint FILE \\
        [--compare FILE|CONFIG:FILE ...] [--names NAME ...] [key=value ...]

Runs the test images of CONFIG once through each model, and writes alignment.json, plots, and alignment.html, which
shows all of it in columns and opens from disk. `--compare FILE` is another checkpoint of the same config. `key=value`,
such as `dataloader.test.num_workers=0`, changes every config that has the key. detrkit.analysis says what the
figures are.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands.command_line import errors_in_one_line, interrupts_end, take_overrides
from detrkit.config.load import load_configs
from detrkit.reports.alignment import Candidate, analyze, default_names, table_of
from detrkit.weights import is_remote


def read_candidates(args: argparse.Namespace) -> list[Candidate]:
    given = [(args.config_file, args.checkpoint), *(split_pair(text, args.config_file) for text in args.compare)]
    if args.names and len(args.names) != len(given):
        raise ValueError(f"--names has {len(args.names)} names for {len(given)} models")
    if args.batch_size < 1 or (args.num_images is not None and args.num_images < 1):
        raise ValueError("--batch-size and --num-images are at least 1")
    candidates = []
    configs = load_configs([config for config, _ in given], args.opts)
    for (config, checkpoint), cfg in zip(given, configs, strict=True):
        if checkpoint is None:
            checkpoint = cfg.train.get("init_checkpoint") or ""
        if checkpoint and not is_remote(checkpoint) and not Path(checkpoint).is_file():
            raise FileNotFoundError(f"no such checkpoint: {checkpoint}")
        candidates.append(Candidate("", config, checkpoint, cfg))
    for candidate, name in zip(candidates, args.names or default_names(candidates), strict=True):
        candidate.name = name
    return candidates


def split_pair(text: str, config: str) -> tuple[str, str]:
    """`CONFIG:FILE` or `FILE`, of which the config is `config`."""
    pair = re.fullmatch(r"(.+?\.(?:py|ya?ml)):(.+)", text)
    return (pair[1], pair[2]) if pair else (config, text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="CONFIG", help="a config as align-detr train takes it"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="weights (default: the config's train.init_checkpoint)")
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        default=[],
        metavar="[CONFIG:]FILE",
        help="further models; another config's own test pipeline is used, on the first config's images",
    )
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="names of the models, in their order")
    parser.add_argument("--output", type=Path, default=Path("output/alignment"), help="folder (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images of one size at a time (default: %(default)s)")
    parser.add_argument("--num-images", type=int, help="only the first so many images")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to all configs that have the key")
    args = parser.parse_intermixed_args(argv)
    for words in (args.compare, args.names):
        take_overrides(words, args.opts)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with errors_in_one_line(), interrupts_end():
        print(table_of(analyze(read_candidates(args), args.output, args.num_images, args.batch_size)))
        print(f"Wrote {args.output / 'alignment.html'}, with its plots and alignment.json beside it")
