#!/usr/bin/env python
"""Writes a trained detector as one file that is all one needs to use it.

    python tools/export_model.py SOURCE --output FILE.safetensors

SOURCE is the folder of a training; or give `--config-file CONFIG --checkpoint FILE`, and `key=value` to change the
config. The file holds weights (averaged ones, where the training kept them), config, names of classes and input size.
`align_detr.Detector`, tools/demo.py and `train.init_checkpoint` take it, and nothing in it is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import errors_in_one_line, load_config, take_overrides  # isort: skip (sets sys.path)

from align_detr.checkpoint_files import load_detector
from align_detr.deployment.classes import Classes
from align_detr.deployment.exported import write_exported
from align_detr.deployment.sources import Source, find_source

FORMATS = (".safetensors",)


def export(args: argparse.Namespace) -> str:
    """Writes the file and returns a line about it."""
    if args.output.suffix not in FORMATS:
        raise ValueError(f"--output {args.output}: a name that ends in {' or '.join(FORMATS)}, please")
    cfg, weights, classes = source_of(args)
    if args.output.resolve() == Path(weights).resolve():
        raise ValueError(f"--output {args.output} is where the weights come from: give another name")
    cfg.train.device = "cpu"
    model = load_detector(cfg, weights)
    classes = classes.for_outputs(model.num_classes) if classes else Classes.numbered(model.num_classes)
    write_exported(args.output, model.state_dict(), cfg, classes)
    size = args.output.stat().st_size / 1e6
    return f"{args.output}: {size:.1f} MB, {type(model).__name__} with {len(classes.names)} classes"


def source_of(args: argparse.Namespace) -> Source:
    """The config with its changes, the weights and the classes."""
    if args.source is None and not (args.config_file and args.checkpoint):
        raise ValueError("give the folder of a training, or --config-file and --checkpoint")
    if args.source is not None and (args.config_file or args.opts):
        raise ValueError(f"{args.source} has a config of its own: to change it, give --config-file and --checkpoint")
    config = load_config(args.config_file, args.opts) if args.config_file else None
    return find_source(args.source, config, args.checkpoint)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="SOURCE", help="the folder of a training, or an exported file")
    parser.add_argument("--config-file", metavar="CONFIG", help="instead of SOURCE, with --checkpoint")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; with SOURCE, in place of its own")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=f"the file to write, {FORMATS[0]}")
    args = parser.parse_intermixed_args(argv)
    args.opts = []
    take_overrides(args.words, args.opts)
    if len(args.words) > 1:
        parser.error(f"one source, please, not {' and '.join(args.words)}")
    args.source = args.words[0] if args.words else None
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with errors_in_one_line():
        print(export(args))


if __name__ == "__main__":
    main()
