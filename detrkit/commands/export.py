"""Writes a trained detector as one file that is all one needs to use it.

    align-detr export SOURCE --output FILE.safetensors
    align-detr export SOURCE --output FILE.onnx|FILE.pt2 [--batch N] [--size H W] [--dynamic] [--float64] [--check PICS]

SOURCE is the folder of a training, or an exported file; or give `--config-file CONFIG --checkpoint FILE`, and
`key=value` to change the config. A `.safetensors` file holds weights (averaged ones, where the training kept them),
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
from detrkit.commands.command_line import errors_in_one_line, load_config, take_overrides
from detrkit.config.exported import input_size, write_exported
from detrkit.datasets.files import image_files
from detrkit.datasets.images import read_image
from detrkit.inference.agreement import LISTED, agreement_table, compare, compare_each, rounding_table
from detrkit.inference.graph import Shape, metadata_of, write_onnx, write_program
from detrkit.inference.network import Network
from detrkit.inference.pytorch import PyTorchNetwork
from detrkit.inference.runtimes import OnnxNetwork, ProgramNetwork
from detrkit.inference.sources import Source, find_source
from detrkit.weights import families

WEIGHTS, GRAPHS = ".safetensors", (".onnx", ".pt2")
LANDSCAPE = (480, 640)  # height and width of the picture whose input is --size where it is not given


def export(args: argparse.Namespace) -> None:
    """Writes the file, says so, and checks it if asked to.

    Raises:
        ValueError: it does not find what PyTorch finds.
    """
    check(args)
    cfg, weights, classes = source_of(args)
    if args.format:
        return print(export_weights.export(weights_arguments(args, cfg, weights)))
    if args.output.resolve() == Path(weights).resolve():
        raise ValueError(f"--output {args.output} is where the weights come from: give another name")
    network = PyTorchNetwork(cfg, weights, classes, "cpu", "float32")
    network = network.in_float64() if args.float64 else network
    model = network.model
    if args.output.suffix == WEIGHTS:
        write_exported(args.output, model.state_dict(), cfg, network.classes)
        what = ""
    else:
        shape = write_graph(args, network, cfg)
        size = f"{shape.size[0]} x {shape.size[1]} pixels" if shape.size else "any size"
        what = f", {shape.batch or 'any number of'} image(s) of {size}"
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {size:.1f} MB, {type(model).__name__} with {len(network.classes.names)} classes{what}")
    if args.check:
        agree(network, open_graph(args.output), args.check, args.output.suffix)


def check(args: argparse.Namespace) -> None:
    if args.format is None and args.output.suffix not in (WEIGHTS, *GRAPHS):
        raise ValueError(f"--output {args.output}: a name that ends in {WEIGHTS}, {' or '.join(GRAPHS)}, please")
    graph_only = [name for name in ("batch", "size", "dynamic", "check") if getattr(args, name) not in (None, False)]
    if args.format and (graph_only or args.float64):
        raise ValueError(
            f"--{(graph_only or ['float64'])[0]} is for {' and '.join(GRAPHS)}: --format writes weights alone"
        )
    if args.output.suffix == WEIGHTS and graph_only:
        raise ValueError(f"--{graph_only[0]} is for {' and '.join(GRAPHS)}: a {WEIGHTS} file has no graph")
    if args.float64 and args.output.suffix != ".onnx":
        raise ValueError("--float64 is for .onnx")
    if any(number is not None and number < 1 for number in (args.batch, *(args.size or []))):
        raise ValueError("--batch and --size are at least 1")


def weights_arguments(args: argparse.Namespace, cfg: DictConfig, weights: str) -> argparse.Namespace:
    """The arguments of `align-detr export-weights` for a source and --format."""
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


def write_graph(args: argparse.Namespace, network: PyTorchNetwork, cfg: DictConfig) -> Shape:
    """The graph of a model, written as the name of --output says; returns what it takes."""
    resized = input_size(cfg)
    example = resized.shape(*LANDSCAPE)
    size = tuple(args.size) if args.size else None if args.dynamic else example
    shape = Shape(args.batch or (None if args.dynamic else 1), size)
    metadata = metadata_of(network.classes, resized, shape, cfg.dataloader.test.mapper.get("img_format", "RGB"))
    write = write_onnx if args.output.suffix == ".onnx" else write_program
    write(network.model, args.output, metadata, shape, example)
    return shape


def open_graph(path: Path) -> Network:
    return OnnxNetwork(path, "cpu") if path.suffix == ".onnx" else ProgramNetwork(path)


def agree(reference: PyTorchNetwork, other: Network, folder: Path, suffix: str) -> None:
    """Print how far the two agree on the pictures of a folder, and where they do not, how far each of them is from
    PyTorch in float64; ValueError if they do not, or if nothing was found."""
    files = list(image_files(folder))
    if not files:
        raise ValueError(f"--check {folder}: no image in this folder")
    results = compare(reference, other, ((path.name, read_image(path)) for path in files))
    names = "PyTorch", {".onnx": "ONNX Runtime"}.get(suffix, "torch.export")
    print(agreement_table(results, names))
    if not any(result.counts[0] for result in results):
        raise ValueError(f"--check {folder}: nothing scores above 0.05 there, so nothing was compared")
    if wrong := [path for path, result in zip(files, results, strict=True) if not result.agrees]:
        pictures = ((path.name, read_image(path)) for path in wrong[:LISTED])
        beside = compare_each(reference.in_float64(), [reference, other], other.prepare, pictures)
        print(f"\n{rounding_table(dict(zip(names, beside, strict=True)))}")
        raise ValueError(f"PyTorch and the file disagree on {len(wrong)} of {len(results)} pictures")


def source_of(args: argparse.Namespace) -> Source:
    """The config with its changes, the weights and the classes."""
    if args.source is None and not (args.config_file and args.checkpoint):
        raise ValueError("give the folder of a training, or --config-file and --checkpoint")
    if args.source is not None and (args.config_file or args.opts):
        raise ValueError(f"{args.source} has a config of its own: to change it, give --config-file and --checkpoint")
    config = load_config(args.config_file, args.opts) if args.config_file else None
    return find_source(args.source, config, args.checkpoint, args.opts)


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
            export(args)
        except ImportError as error:  # a package that only some files need
            raise ValueError(str(error)) from error
