"""`align-detr export`: write a detector as one file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line
from detrkit.commands.choices import PRECISIONS, WEIGHT_FAMILIES, WEIGHT_FORMATS
from detrkit.runtime.text import plural
from detrkit.runtime.weight_files import ZOO

DESCRIPTION = """\
Write a detector as one file.

Give the folder of a training, an exported file, or zoo:NAME; or a CONFIG with --checkpoint FILE, which takes key=value
too.

.safetensors  weights (averaged ones if the training kept them), config, names of classes and input size. Nothing in
              the file is run. `detrkit.Detector`, `align-detr demo` and train.init_checkpoint take it.
.onnx         for ONNX Runtime and others; .xml (with a .bin beside it) for OpenVINO; .pt2 for torch.export: each has
.xml, .pt2    the whole network, from images to boxes. Input `images` (N, 3, H, W): float32 from 0 to 255. Outputs
              `boxes` (N, K, 4): left, top, right, bottom in pixels of the images; `scores` and `classes` (N, K).
              Detections are sorted, best first."""
MORE = """\
--check prints the differences between PyTorch and the file, and whether they agree; it fails if they do not. It then
also prints how far both are from PyTorch in float64: this separates rounding from a mistake. With --precision float16
and int8 it never fails. Images that cannot be read are named and left out."""
EXAMPLES = (
    "align-detr export output/align_detr_tiny --output tiny.safetensors",
    "align-detr export output/align_detr_tiny --which best --output tiny.onnx --dynamic --check photos",
    "align-detr export output/align_detr_tiny --output int8.onnx --dynamic --precision int8 --calibration photos",
)
GRAPHS = (".onnx", ".xml", ".pt2")


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr export`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, MORE, prog="align-detr export")
    command_line.add_config(
        parser, "the folder of a training, an exported file, or a config", metavar="FOLDER|FILE|CONFIG"
    )
    command_line.add_checkpoint(parser, "weights; with SOURCE, in place of its own")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".safetensors, .onnx, .xml or .pt2")
    parser.add_argument(
        "--format",
        choices=WEIGHT_FORMATS,
        metavar="NAME",
        help=f"write weights alone, under the names of {', '.join(WEIGHT_FAMILIES)}; see `align-detr export-weights`",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="images at once (default: 1; any with --dynamic)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="pixels that images are resized to, without keeping their aspect ratio (default: the size that the config "
        "resizes 480 x 640 to; any with --dynamic)",
    )
    parser.add_argument("--dynamic", action="store_true", help="leave free what --batch and --size do not set")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="float16: of large modules (.onnx), or of the stored weights (.xml); int8: of backbone and feed-forward "
        "blocks (.onnx); float64: exact and slow (.onnx)",
    )
    parser.add_argument(
        "--calibration", metavar="FOLDER|DATASET", help="images for --precision int8, best those of the training"
    )
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="compare with PyTorch on the images of a folder")
    command_line.add_overrides(parser)
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Check that options fit together, before anything is imported.

    Raises:
        ValueError: they do not.
        FileNotFoundError: config or checkpoint are not there.
    """
    if not args.config and (args.checkpoint or "").startswith(ZOO):
        args.config, args.checkpoint = args.checkpoint, None
    command_line.check_exist(args.config, args.checkpoint, "folder, file or config")
    command_line.check_output_file(args.output)
    if not args.config or not (has_config(args.config) or args.checkpoint):
        raise ValueError("no detector: give the folder of a training, an exported file, or a config and --checkpoint")
    if has_config(args.config) and args.overrides:
        raise ValueError(f"{args.config} has a config of its own: to change it, give a config and --checkpoint")
    if args.check and args.output.suffix == ".safetensors":
        raise ValueError(f"--check is for {', '.join(GRAPHS)}: a .safetensors file has no graph")
    graph_only = [name for name in ("batch", "size", "dynamic", "check", "calibration") if getattr(args, name)]
    graph_only += ["precision"] if args.precision != "float32" else []
    if args.format and graph_only:
        raise ValueError(f"--{graph_only[0]} is for {', '.join(GRAPHS)}: --format writes weights alone")


def has_config(source: str) -> bool:
    """Whether a source has config and weights: the folder of a training, an exported file, or `zoo:NAME`."""
    return Path(source).is_dir() or source.endswith(".safetensors") or source.startswith(ZOO)


def run(args: argparse.Namespace) -> None:
    """Write the file, print a line about it, and check it if asked to."""
    with command_line.errors_in_one_line():
        check_options(args)
        try:
            export(args)
        except ImportError as error:  # a package that only some files need
            raise ValueError(str(error)) from error


def export(args: argparse.Namespace) -> None:
    """Write the file that the options ask for.

    Raises:
        ValueError: options do not fit, or the file detects something else than PyTorch.
    """
    from align_detr._platform import ENV_VAR, is_upstream

    if args.output.suffix in GRAPHS and is_upstream() and ENV_VAR not in os.environ:
        # Again on the engine, whose modules can be traced: models and weights are the same.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, ENV_VAR: "embedded"})
    from detrkit.config.load import load_config
    from detrkit.inference import export as library

    if args.check:
        library.check_images(args.check)
    source = args.config if has_config(args.config) else None
    config = None if source else load_config(args.config, args.overrides)
    if args.format:
        print(export_weights(args, source, config))
        return
    exported = library.export(
        source,
        args.output,
        config=config,
        checkpoint=args.checkpoint,
        batch=args.batch,
        size=args.size,
        dynamic=args.dynamic,
        precision=args.precision,
        calibration=args.calibration,
        overrides=args.overrides,
        which=args.which,
    )
    if Path(args.config).is_dir():
        print(f"weights: {exported.weights}")
    print(summary(exported))
    if args.check:
        runtime = {".onnx": "ONNX Runtime", ".xml": "OpenVINO", ".pt2": "torch.export"}[exported.path.suffix]
        is_exact = args.precision in ("float32", "float64")
        print_check(exported.network, library.open_exported(exported.path), args.check, runtime, is_exact=is_exact)


def export_weights(args: argparse.Namespace, source: str | None, config) -> str:
    """Write weights alone, as `--format` asks; return the table about them."""
    from detrkit.inference.sources import find_source
    from detrkit.inference.weights_file import export_weights

    cfg, weights, _ = find_source(source, config, args.checkpoint, args.overrides, args.which)
    ema = bool(cfg.train.model_ema.enabled)
    return export_weights(Path(weights), args.output, format=args.format, ema=ema)


def summary(exported) -> str:
    """Return a line such as "mine.onnx: 190.1 MB, DINO with 80 classes, 1 image of 480 x 640 pixels"."""
    network, shape = exported.network, exported.shape
    files = [exported.path, *([exported.path.with_suffix(".bin")] if exported.path.suffix == ".xml" else [])]
    megabytes, classes = sum(file.stat().st_size for file in files) / 1e6, len(network.classes.names)
    line = f"{exported.path}: {megabytes:.1f} MB, {type(network.model).__name__} with {plural(classes, 'class')}"
    if shape is None:
        return line
    size = f"{shape.size[0]} x {shape.size[1]} pixels" if shape.size else "any size"
    images = plural(shape.batch, "image") if shape.batch else "any number of images"
    return f"{line}, {images} of {size}"


def print_check(reference, other, folder: Path, runtime: str, *, is_exact: bool = True) -> None:
    """Print how far a graph's detections are from PyTorch's, and whether they agree.

    Args:
        reference: the `PyTorchNetwork`.
        other: the `Network` of the graph.
        folder: of images.
        runtime: the name of the graph's runtime, for the tables.
        is_exact: whether the graph is to agree up to rounding; otherwise its differences are printed alone.

    Raises:
        ValueError: they disagree, and are to agree.
    """
    from detrkit.inference.agreement import agreement_table, rounding_table, verdict
    from detrkit.inference.export import check_graph

    names = "PyTorch", runtime
    results, rounding = check_graph(reference, other, folder, explain=is_exact)
    print(agreement_table(results, names))
    if rounding:
        print(f"\n{rounding_table(dict(zip(names, rounding, strict=True)))}")
        raise ValueError(verdict(results, names))
    print(verdict(results, names))


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
