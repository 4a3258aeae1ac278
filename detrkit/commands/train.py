"""`align-detr train`: train a detector. `tools/train_net.py` is the same with detectron2's options."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from detrkit.commands import command_line
from detrkit.commands.folder_options import add_folder_options, check_folder_options
from detrkit.config.given import given_values

DESCRIPTION = """\
Train a detector, on a CPU, on GPUs, in one process or several (--num-gpus, or torchrun).

Give a CONFIG for its dataset, or --data for a folder of annotated images; --resume also takes the folder of a training.
The output folder, train.output_dir, gets checkpoints, log.txt, metrics.json and report.html."""
EXAMPLES = (
    "align-detr train align_detr_tiny train.max_iter=100",
    "align-detr train --data FOLDER --epochs 20 train.output_dir=output/mine",
    "align-detr train --resume output/mine",
)
DATA_FILES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".xml"}
MOST_FILES = 10_000  # looked at in a folder
RESUME = "go on from the newest checkpoint in train.output_dir"


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr train`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr train")
    command_line.add_config(parser)
    add_training_options(parser, "required")
    parser.add_argument("--eval-only", action="store_true", help=argparse.SUPPRESS)  # former name of `align-detr eval`
    add_processes(parser)
    command_line.add_overrides(parser)
    return parser


def detectron2_parser() -> argparse.ArgumentParser:
    """Return the options of `tools/train_net.py`: those of detectron2 and detrex, and ours."""
    parser = command_line.CommandParser(
        f"{DESCRIPTION}\n\nWithout a checkpoint, --resume begins anew, as in detectron2.",
        (
            "python tools/train_net.py --config-file projects/align_detr/configs/align_detr_tiny.py --num-gpus 2",
            "python tools/train_net.py --config-file CONFIG --eval-only train.init_checkpoint=FILE",
        ),
        prog="train_net.py",
    )
    command_line.add_config(parser)
    add_training_options(parser, "auto")
    parser.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint, do not train")
    add_processes(parser)
    command_line.add_overrides(parser)
    return parser


def add_training_options(parser: argparse.ArgumentParser, resume: str) -> None:
    """Add the options of a training.

    Args:
        resume: the meaning of a bare `--resume`: "required" or "auto".
    """
    parser.add_argument(
        "--resume",
        nargs="?",
        const=resume,
        metavar="auto",
        help=f"{RESUME}; `--resume=auto` begins anew if there is none",
    ).completer = lambda **_: ["auto"]
    parser.add_argument(
        "--allow-changes", action="store_true", help="with --resume: even if the training began with another config"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the files of an earlier training in train.output_dir"
    )
    add_folder_options(
        parser,
        "train on this folder, in any layout that `align-detr convert` reads. It is split if it has no validation "
        "split. The default CONFIG is that of train.init_checkpoint=zoo:NAME, else align_detr_r50_4scale_12ep; on a "
        'machine without a GPU it is align_detr_lite0_4scale if the extra "cpu" is installed. The output folder, '
        "output/FOLDER, gets it as config.py",
        "train.max_iter",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add detectron2's options for several processes."""
    group = parser.add_argument_group("several processes")
    group.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine, one per GPU")
    group.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines that take part")
    group.add_argument("--machine-rank", type=int, default=0, metavar="N", help="number of this machine, from 0")
    group.add_argument("--dist-url", default="auto", metavar="URL", help="where they meet: tcp://HOST:PORT")


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    """As `command_line.parse`. A word after `--resume` that is not "auto" is the config or an override."""
    words = list(sys.argv[1:] if words is None else words)
    bare = parser._option_string_actions["--resume"].const
    joined = []
    for word in words:
        if joined and joined[-1] == "--resume":
            joined[-1] = f"--resume={word if word == 'auto' else bare}"
            if word == "auto":
                continue
        joined.append(word)
    args = command_line.parse(parser, joined)
    if args.resume not in (None, "required", "auto"):
        parser.error(f"--resume={args.resume}: --resume, or --resume=auto to begin anew if there is no checkpoint")
    return args


def take_folder(args: argparse.Namespace) -> None:
    """Replace the folder of a training, given as the config, by its config.yaml and by itself as `train.output_dir`.

    Raises:
        FileNotFoundError: it is another folder; the message has --data for one with images or annotations.
        ValueError: its config.yaml cannot be loaded.
    """
    folder = Path(args.config)
    if args.eval_only or not args.config or not folder.is_dir():
        return
    if not (folder / "config.yaml").is_file():
        holds_data = any(path.suffix.lower() in DATA_FILES for path in islice(folder.rglob("*"), MOST_FILES))
        advice = f"to train on its images: `align-detr train --data {args.config}`" if holds_data else "give a CONFIG"
        raise FileNotFoundError(f"{args.config} is not the folder of a training, it has no config.yaml; {advice}")
    from detrkit.config.load import load_config_file

    args.config = str(folder / "config.yaml")
    try:
        load_config_file(args.config)
    except ValueError as error:  # it names code of the user's
        raise ValueError(
            f"{error}: resume it by the config that it began with, `align-detr train CONFIG.py --resume "
            f"train.output_dir={folder}`"
        ) from error
    if not any(text.startswith("train.output_dir=") for text in args.overrides):
        args.overrides.insert(0, f"train.output_dir={folder}")


def check_options(args: argparse.Namespace) -> None:
    """Check options, config, checkpoint, output folder and data, in this order, before PyTorch is imported.

    Raises:
        ValueError: options do not fit together, the checkpoint is no file of weights, or the output folder holds
            another training, or none to resume.
        OSError: a file is not there, or the output folder cannot be written to.
    """
    check_folder_options(args)
    if args.data and args.eval_only:
        raise ValueError("--data is for training; to evaluate on its images, give the config.py that training wrote")
    if args.resume and args.overwrite:
        raise ValueError("--resume goes on with a training, --overwrite deletes it: give one of them")
    if not args.data and not args.config:
        raise ValueError(
            "no config: give its name (`align-detr configs` lists them) or its path, or a folder of images by --data"
        )
    command_line.check_exist(args.config, None, "folder or config" if args.resume else "")
    from detrkit.runtime.weight_files import is_remote

    given = given_values(args.overrides)
    if (checkpoint := given.get("train.init_checkpoint")) and not args.resume:
        if not is_remote(checkpoint) and not Path(checkpoint).is_file() and checkpoint not in ("null", "''"):
            raise FileNotFoundError(f"train.init_checkpoint={checkpoint}: no such file")
        command_line.check_exist(None, checkpoint if Path(checkpoint).is_file() else None)
    output = given.get("train.output_dir") or (f"output/{args.data.resolve().name}" if args.data else None)
    if output and not args.eval_only and int(os.environ.get("RANK", 0)) == 0:
        from detrkit.training.output_folder import check_output_folder

        check_output_folder(output, resume=args.resume or False, overwrite=args.overwrite)
    if args.data and not args.data.exists():
        raise FileNotFoundError(f"no such folder: {args.data}")


def work(args: argparse.Namespace) -> None:
    """Train or evaluate in each process of a run."""
    with command_line.errors_in_one_line():
        from detrkit.api import evaluate, train
        from detrkit.config.catalogue import find_config
        from detrkit.config.load import load_config
        from detrkit.runtime.allocation import keep_freed_memory
        from detrkit.training.checkpoints import newest_checkpoint
        from detrkit.training.session import join_torchrun

        join_torchrun()
        config, overrides = (write_config(args), []) if args.data else (args.config, args.overrides)
        cfg = load_config(config, overrides)
        config = str(find_config(config))
        if args.eval_only:
            keep_freed_memory()
            point = newest_checkpoint(cfg.train.output_dir) if args.resume else None
            checkpoint = str(Path(cfg.train.output_dir, point.name)) if point else cfg.train.init_checkpoint
            evaluate(cfg, checkpoint, config_file=config, overrides=args.overrides)
            return
        train(
            cfg,
            resume="auto" if args.resume == "auto" else bool(args.resume),
            allow_changes=args.allow_changes,
            overwrite=args.overwrite,
            config_file=config,
            overrides=args.overrides,
        )


def write_config(args: argparse.Namespace) -> str:
    """Convert --data and write the config of a training on it, and print what was found. Returns the config's path."""
    from detrkit.training.folder import default_config, print_conversion, write_folder_config

    written = write_folder_config(
        args.data,
        args.config or default_config(args.overrides),
        args.overrides,
        format=args.format,
        keep_classes=args.classes,
        epochs=args.epochs,
        resume="auto" if args.resume == "auto" else bool(args.resume),
        allow_changes=args.allow_changes,
        overwrite=args.overwrite,
    )
    if written.conversion is not None:
        print_conversion(written.conversion)
        print(f"Config: {Path(written.base).stem}, written to {written.file}", end="\n\n")
    return str(written.file)


def run(args: argparse.Namespace) -> None:
    """Check the options, and start the processes."""
    with command_line.errors_in_one_line():
        take_folder(args)
        check_options(args)
    launch_processes(work, args)


def launch_processes(task, args: argparse.Namespace) -> None:
    """Run `task(args)` in the processes that the options ask for. Ctrl-C and SIGTERM end the program by their status.

    The config is loaded first: a mistake should stop one process, not all of them.
    """
    with command_line.errors_in_one_line():
        from detectron2.engine import launch

        from detrkit.config.load import load_config
        from detrkit.training.stopping import Interrupted, sigterm_passed_on

    try:
        with command_line.errors_in_one_line(), sigterm_passed_on():
            if args.num_gpus > 1 and args.config:
                load_config(args.config, args.overrides)
            launch(
                task,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + (interrupt.args[0] if isinstance(interrupt, Interrupted) else signal.SIGINT))


def main(argv: Sequence[str] | None = None) -> None:
    run(parse(parser(), argv))


def train_net(argv: Sequence[str] | None = None) -> None:
    """Run `tools/train_net.py`."""
    run(parse(detectron2_parser(), argv))
