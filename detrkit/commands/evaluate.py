"""`align-detr eval`: evaluate a detector."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from detrkit.commands import command_line
from detrkit.commands.choices import RUNTIME_FILES
from detrkit.commands.train import add_processes, launch_processes
from detrkit.config.given import given_values

DESCRIPTION = """\
Evaluate a detector on the test data of its config, by COCO's metrics.

Give the folder of a training or zoo:NAME; or a CONFIG with --checkpoint, a checkpoint (.pth) or an exported file
(.safetensors, .onnx, .xml)."""
EXAMPLES = (
    "align-detr eval output/align_detr_tiny --which best",
    "align-detr eval align_detr_tiny --checkpoint output/align_detr_tiny/model_final.pth",
    "align-detr eval output/align_detr_tiny --tta train.test_aug.min_sizes=[112,128,144]",
    "align-detr eval output/align_detr_tiny --checkpoint tiny.onnx --runtime openvino",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr eval`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr eval")
    command_line.add_config(parser, "name or path of a config, or the folder of a training", metavar="CONFIG|FOLDER")
    command_line.add_checkpoint(parser, "weights (default: train.init_checkpoint of the config)")
    command_line.add_tta(parser)
    # Former spellings, of the time when `align-detr eval` was `align-detr train --eval-only`.
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--eval-only", action="store_true", help=argparse.SUPPRESS)
    command_line.add_runtime(parser)
    add_processes(parser)
    command_line.add_overrides(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Evaluate, in as many processes as the options ask for."""
    with command_line.errors_in_one_line():
        if not args.config and not args.checkpoint:
            raise ValueError("nothing to evaluate: give the folder of a training, or a config and --checkpoint")
        is_graph = (args.checkpoint or "").endswith(RUNTIME_FILES)
        check_graph_options(args, is_graph)
        command_line.check_exist(args.config, None if is_graph else args.checkpoint, "folder or config")
        check_one_checkpoint(args)
        config, args.checkpoint, folder = command_line.find_named(args)
        check_has_data(config, ".safetensors", *RUNTIME_FILES)
        # The results of a training's folder belong there, also after it was moved.
        is_first = folder is not None and folder.samefile(args.config or args.checkpoint)
        args.folder = folder if is_first else None
        args.config, args.overrides = config, command_line.with_tta(args)
    launch_processes(work, args)


def check_one_checkpoint(args: argparse.Namespace) -> None:
    """Raise ValueError if `train.init_checkpoint=` names other weights than --checkpoint or the training's folder."""
    given = given_values(args.overrides).get("train.init_checkpoint")
    named = args.checkpoint or (args.config if Path(args.config).is_dir() else "")
    if given and named and given != named:
        raise ValueError(
            f"train.init_checkpoint={given} is not evaluated, as {named} is: for other weights than a training's, give "
            f"--checkpoint {given}"
        )


def check_graph_options(args: argparse.Namespace, is_graph: bool) -> None:
    """Raise ValueError if the options for graphs do not fit, FileNotFoundError if the graph is not there."""
    check_has_data(args.config, *RUNTIME_FILES)
    if not is_graph:
        if args.runtime is not None or args.dtype != "float32":
            raise ValueError("--runtime and --dtype are for graphs (.onnx, .xml): give one by --checkpoint")
    elif not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"no such file: {args.checkpoint}")
    elif args.num_gpus > 1 or args.num_machines > 1:
        raise ValueError(f"{args.checkpoint}: a graph is evaluated in one process")
    elif args.tta:
        raise ValueError(f"{args.checkpoint} is a graph of one pass: --tta needs the detector in PyTorch")


def check_has_data(config: str, *suffixes: str) -> None:
    """Raise ValueError if the config is a file with one of these suffixes, which hold a detector alone."""
    if config.endswith(suffixes):
        raise ValueError(
            f"{config} has no test data: give a config that has, as `align-detr eval CONFIG --checkpoint {config}`"
        )


def results_folder(folder: Path, given: Mapping[str, str]) -> Path:
    """Return where the results belong: the training's folder, or one in it for a dataset that the user names.

    `visualize-results` and `errors` expect the results of the training's own dataset in its folder.
    """
    return folder / given.get("dataloader.test.dataset.names", "")


def work(args: argparse.Namespace) -> None:
    """Evaluate in each process of a run."""
    with command_line.errors_in_one_line():
        from detrkit.api import evaluate
        from detrkit.config.catalogue import find_config
        from detrkit.inference.sources import load_named_config
        from detrkit.runtime.allocation import keep_freed_memory
        from detrkit.runtime.weight_files import is_name
        from detrkit.training.checkpoints import newest_checkpoint
        from detrkit.training.session import join_torchrun

        join_torchrun()
        cfg = load_named_config(args.config, args.overrides)
        given = given_values(args.overrides)
        trained = cfg.train.output_dir
        if args.folder and "train.output_dir" not in given:
            trained = str(args.folder)
            cfg.train.output_dir = str(results_folder(args.folder, given))
            if "output_dir" in cfg.dataloader.get("evaluator", {}):
                cfg.dataloader.evaluator.output_dir = cfg.train.output_dir
        keep_freed_memory()
        point = newest_checkpoint(trained) if args.resume else None
        checkpoint = f"{trained}/{point.name}" if point else args.checkpoint
        config = args.config if is_name(args.config) else str(find_config(args.config))
        graph_options = {"runtime": args.runtime, "dtype": args.dtype}
        evaluate(cfg, checkpoint, config_file=config, overrides=args.overrides, **graph_options)


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
