"""Train or evaluate a detector.

    align-detr train --config-file CONFIG [--resume | --eval-only] [--num-gpus N] [key=value ...]
    align-detr train --data FOLDER [key=value ...]

Runs on the embedded engine as on detectron2 and detrex, on CPUs and GPUs, in one process or several, by `--num-gpus`
or under torchrun. `--help` lists the options; `key=value` changes the config, such as `train.max_iter=100`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.engine import default_argument_parser, launch

from detrkit.api import evaluate, train
from detrkit.commands.command_line import errors_in_one_line, parse_arguments, take_overrides
from detrkit.config.catalogue import find_config
from detrkit.config.load import load_config
from detrkit.datasets.formats import FORMATS
from detrkit.runtime.allocation import keep_freed_memory
from detrkit.training.checkpoints import newest_checkpoint
from detrkit.training.folder import BASE_CONFIG, CPU_CONFIG, EPOCHS, default_config, write_folder_config
from detrkit.training.session import join_torchrun
from detrkit.training.stopping import Interrupted, sigterm_passed_on


def argument_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser()
    parser.add_argument(
        "--allow-changes", action="store_true", help="with --resume: even if the training began with another config"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the files of an earlier training in train.output_dir"
    )
    group = parser.add_argument_group("your own images")
    group.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="train on this folder, in any layout that `align-detr convert` reads; it is split if it has no validation "
        "part. "
        "The config, by default that of train.init_checkpoint=zoo:NAME, else "
        f"{BASE_CONFIG}, on a machine without a GPU {CPU_CONFIG} if the extra "
        "\"cpu\" is installed, is written with it to the output folder, output/FOLDER",
    )
    group.add_argument("--format", choices=FORMATS, help="layout of --data (default: recognised)")
    group.add_argument("--classes", nargs="+", metavar="NAME", help="of --data, train on these alone")
    group.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"passes over --data, if train.max_iter is not given (default {EPOCHS})",
    )
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Complete `args`. `--classes` may have taken overrides.

    Raises:
        ValueError: options do not fit together.
    """
    take_overrides(args.classes or [], args.opts)
    others = {"--format": args.format, "--classes": args.classes, "--epochs": args.epochs}
    if args.data is None and (stray := [name for name, value in others.items() if value is not None]):
        raise ValueError(f"{stray[0]} is for a folder of images: give it by --data")
    if args.data and args.eval_only:
        raise ValueError("--data is for training; to evaluate on its images, give the config.py that training wrote")
    if args.data and not args.config_file:
        args.config_file = default_config(args.opts)


def run(args: argparse.Namespace) -> None:
    """Train or evaluate in each process of a run."""
    with errors_in_one_line():
        join_torchrun()
        config, overrides = args.config_file, args.opts
        if args.data:
            written = write_folder_config(
                args.data,
                config,
                overrides,
                format=args.format,
                keep_classes=args.classes,
                epochs=args.epochs,
                resume=args.resume,
                overwrite=args.overwrite,
            )
            if written.conversion is not None:
                for line in written.conversion.problems.report():
                    print(line, file=sys.stderr)
                print(written.conversion.table(), end="\n\n")
                print(f"Config: {Path(written.base).stem}, written to {written.file}", end="\n\n")
            config, overrides = str(written.file), []
        cfg = load_config(config, overrides)
        config = str(find_config(config))
        if args.eval_only:
            keep_freed_memory()
            point = newest_checkpoint(cfg.train.output_dir) if args.resume else None
            checkpoint = str(Path(cfg.train.output_dir, point.name)) if point else cfg.train.init_checkpoint
            evaluate(cfg, checkpoint, config_file=config, overrides=args.opts)
        else:
            train(
                cfg,
                resume=args.resume,
                allow_changes=args.allow_changes,
                overwrite=args.overwrite,
                config_file=config,
                overrides=args.opts,
            )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argument_parser(), argv)
    try:
        with errors_in_one_line(), sigterm_passed_on():
            check_options(args)
            if args.num_gpus > 1:  # a mistake should stop one process, not all of them
                load_config(args.config_file, args.opts)
            launch(
                run,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + (interrupt.args[0] if isinstance(interrupt, Interrupted) else signal.SIGINT))
