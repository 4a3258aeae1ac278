"""Write a trained detector as one file.

    align-detr export SOURCE --output FILE.safetensors
    align-detr export SOURCE --output FILE.onnx|FILE.pt2 [--batch N] [--size H W] [--dynamic] [--float64] [--check PICS]

SOURCE is `zoo:NAME`, the folder of a training, or an exported file; or give `--config-file CONFIG --checkpoint FILE`,
and `key=value` to change the config. A `.safetensors` file holds weights (averaged ones, where the training kept them),
config, names of classes and input size; `align_detr.Detector`, `align-detr demo` and `train.init_checkpoint` take it,
and nothing in it is run. With `--format NAME` weights alone are written, in the names of another code base (mmdet,
original, huggingface, sensex) or of detrex: see `align-detr export-weights`.

ONNX and `.pt2` (torch.export) hold the whole network, from images to boxes. Its input `images` (N, 3, H, W) are float32
from 0 to 255; its outputs `boxes` (N, K, 4), left, top, right, bottom in pixels of the images, `scores` and `classes`
(N, K), best first. N and H, W are those of --batch and --size; with --dynamic, what these do not say is free. --check
runs pictures through PyTorch and the file, prints the differences, and fails if there are any that matter; how far
either is from PyTorch in float64 on these pictures tells rounding from a mistake. So does an ONNX file of --float64,
which computes, and is compared, in float64.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from align_detr._platform import ENV_VAR, is_upstream
from detrkit.commands import export_weights
from detrkit.commands.command_line import errors_in_one_line, take_overrides
from detrkit.config.load import load_config
from detrkit.inference.agreement import agreement_table, rounding_table
from detrkit.inference.export import GRAPHS, WEIGHTS, ExportedFile, check_graph, export, open_graph
from detrkit.inference.network import Network
from detrkit.inference.pytorch import PyTorchNetwork
from detrkit.inference.sources import find_source
from detrkit.weights import families, zoo


def run(args: argparse.Namespace) -> None:
    """Write the file, print a line about it, and check it if asked to.

    Raises:
        ValueError: options do not fit, or the file detects something else than PyTorch.
    """
    if args.source is None and not args.config_file and (args.checkpoint or "").startswith(zoo.PREFIX):
        args.source, args.checkpoint = args.checkpoint, None
    if args.source is None and not (args.config_file and args.checkpoint):
        raise ValueError("give zoo:NAME, the folder of a training, or --config-file and --checkpoint")
    if args.source is not None and (args.config_file or args.opts):
        raise ValueError(f"{args.source} has a config of its own: to change it, give --config-file and --checkpoint")
    if args.check and args.output.suffix == WEIGHTS:
        raise ValueError(f"--check is for {' and '.join(GRAPHS)}: a {WEIGHTS} file has no graph")
    config = load_config(args.config_file, args.opts) if args.config_file else None
    if args.format:
        print(export_weights.export(weights_arguments(args, config)))
        return
    exported = export(
        args.source,
        args.output,
        config=config,
        checkpoint=args.checkpoint,
        batch=args.batch,
        size=args.size,
        dynamic=args.dynamic,
        float64=args.float64,
        overrides=args.opts,
    )
    print(summary(exported))
    if args.check:
        runtime = {".onnx": "ONNX Runtime"}.get(exported.path.suffix, "torch.export")
        print_check(exported.network, open_graph(exported.path), args.check, runtime)


def weights_arguments(args: argparse.Namespace, config: DictConfig | None) -> argparse.Namespace:
    """The arguments of `align-detr export-weights` for a source and --format.

    Raises:
        ValueError: an option is for graphs.
    """
    graph_only = [name for name in ("batch", "size", "dynamic", "check", "float64") if getattr(args, name)]
    if graph_only:
        raise ValueError(f"--{graph_only[0]} is for {' and '.join(GRAPHS)}: --format writes weights alone")
    cfg, weights, _ = find_source(args.source, config, args.checkpoint, args.opts)
    return argparse.Namespace(
        checkpoint=Path(weights),
        output=args.output,
        format=args.format,
        ema=bool(cfg.train.model_ema.enabled),
        half=False,
        only=None,
        config_file="",
        overrides=[],
    )


def summary(exported: ExportedFile) -> str:
    """Such as "mine.onnx: 190.1 MB, DINO with 80 classes, 1 image(s) of 480 x 640 pixels"."""
    network, shape = exported.network, exported.shape
    megabytes, classes = exported.path.stat().st_size / 1e6, len(network.classes.names)
    line = f"{exported.path}: {megabytes:.1f} MB, {type(network.model).__name__} with {classes} classes"
    if shape is None:
        return line
    size = f"{shape.size[0]} x {shape.size[1]} pixels" if shape.size else "any size"
    return f"{line}, {shape.batch or 'any number of'} image(s) of {size}"


def print_check(reference: PyTorchNetwork, other: Network, folder: Path, runtime: str) -> None:
    """Print how far a graph's detections are from PyTorch's; raise ValueError if they disagree.

    Args:
        runtime: the name of the graph's runtime, for the tables.
    """
    names = "PyTorch", runtime
    results, rounding = check_graph(reference, other, folder)
    print(agreement_table(results, names))
    if rounding:
        print(f"\n{rounding_table(dict(zip(names, rounding, strict=True)))}")
        wrong = sum(not result.agrees for result in results)
        raise ValueError(f"PyTorch and the file disagree on {wrong} of {len(results)} images")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="SOURCE", help="the folder of a training, or an exported file")
    parser.add_argument("--config-file", metavar="CONFIG", help="instead of SOURCE, with --checkpoint")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; with SOURCE, in place of its own")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".safetensors, .onnx or .pt2")
    parser.add_argument("--format", choices=families(), metavar="NAME", help="weights alone, in these names")
    parser.add_argument("--batch", type=int, metavar="N", help="images at once (default: 1; any with --dynamic)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="pixels that pictures are resized to, whatever their aspect (default: what the config makes of 480 x 640; "
        "with --dynamic, what it makes of each)",
    )
    parser.add_argument("--dynamic", action="store_true", help="leave free what --batch and --size do not say")
    parser.add_argument("--float64", action="store_true", help="exact and slow, to tell rounding from a mistake")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="compare with PyTorch on these pictures")
    args = parser.parse_intermixed_args(argv)
    args.opts = []
    take_overrides(args.words, args.opts)
    if len(args.words) > 1:
        parser.error(f"one source, please, not {' and '.join(args.words)}")
    args.source = args.words[0] if args.words else None
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.output.suffix in GRAPHS and is_upstream() and ENV_VAR not in os.environ:
        # Again on the engine, whose modules can be traced: models and weights are the same.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, ENV_VAR: "embedded"})
    with errors_in_one_line():
        try:
            run(args)
        except ImportError as error:  # a package that only some files need
            raise ValueError(str(error)) from error

