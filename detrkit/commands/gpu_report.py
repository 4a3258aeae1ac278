"""`align-detr gpu-report`: measure speed and memory on a GPU, and write one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line
from detrkit.commands.benchmark import parse_size, positive, typed

DESCRIPTION = """\
Measure on one GPU what only a GPU can show, and write it as one page.

    correctness  the kernels of deformable attention against the plain formula in float64, with the inputs of encoder
                 and decoder, in float32, bfloat16 and float16: output and all gradients
    attention    their times, next to the plain formula's and the least time of the memory traffic
    step         a training step in float32 and bfloat16, with options that may make it faster, next to the plain
                 formulation: images/s, memory, the share of each part, and the share of time in which the GPU is busy
    inference    the same for inference, from a batch of images to detections
    schedule     hours of 12 epochs of COCO at the highest rate

Writes FOLDER/gpu.md and gpu.json after each section, so that an interruption loses only the current one. Times are
medians of runs in turn with the plain formulation. A setting that does not fit into memory is a line of the table. The
plain formulations are in tests/reference, so this needs a checkout. A CPU (train.device=cpu) only tests it."""
EXAMPLES = (
    "align-detr gpu-report",
    "align-detr gpu-report align_detr_r50_4scale_24ep --batch-sizes 2 4 --output output/gpu_24ep",
)
LISTS = {"--batch-sizes": [2, 4, 8, 16], "--inference-batch-sizes": [1, 16]}


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr gpu-report`."""
    default = "align_detr_r50_4scale_12ep"
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr gpu-report")
    command_line.add_config(parser, f"name or path of a config (default: {default})", default=default)
    parser.add_argument("--output", type=Path, default=Path("output/gpu"), metavar="FOLDER", help="default: output/gpu")
    parser.add_argument("--image-size", type=parse_size, default=(800, 1333), metavar="HxW", help="default: 800x1333")
    for name, default in LISTS.items():
        text = f"default: {' '.join(map(str, default))}"
        parser.add_argument(name, nargs="+", default=list(map(str, default)), metavar="N", help=text)
    parser.add_argument("--repeats", type=positive, default=7, help="timed runs, after one to warm up (default: 7)")
    command_line.add_overrides(parser)
    return parser


def measure(args: argparse.Namespace) -> None:
    """Measure, print the page, and write it to the output folder."""
    batch_sizes = typed(args.batch_sizes, positive, "--batch-sizes")
    inference_batch_sizes = typed(args.inference_batch_sizes, positive, "--inference-batch-sizes")
    from detrkit.benchmark.gpu_report import GpuReport, GpuReportOptions

    options = GpuReportOptions(
        args.config, args.overrides, args.image_size, batch_sizes, inference_batch_sizes, args.repeats
    )
    for section in GpuReport(options).write(args.output):
        print(section, end="\n\n", flush=True)


def run(args: argparse.Namespace) -> None:
    """Measure, print and write the page."""
    with command_line.errors_in_one_line():
        measure(args)


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
