"""Measure on one GPU what only a GPU can show, and write it as one page.

    align-detr gpu-report [CONFIG] [--output FOLDER] [--image-size 800x1333] [--batch-sizes 2 4 8 16]
        [--inference-batch-sizes 1 16] [--repeats 7] [key=value ...]

    correctness  the kernels of deformable attention against the plain formula in float64, with the inputs of encoder
                 and decoder, in float32, bfloat16 and float16: output and all gradients
    attention    their times, next to the plain formula's and the least time of the memory traffic
    step         a training step in float32 and bfloat16, with options that may make it faster, next to the plain
                 formulation: images/s, memory, the share of each part, and the share of time in which the GPU is busy
    inference    the same for inference, from a batch of images to detections
    schedule     hours of 12 epochs of COCO at the highest rate

Writes FOLDER/gpu.md and gpu.json after each section, so that an interruption loses only the current one. Times are
medians of runs in turn with the plain formulation. A setting that does not fit into memory is a line of the table. The
plain formulations are in tests/reference, so this needs a checkout. A CPU (train.device=cpu) only shows that it works.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands.command_line import errors_in_one_line

LISTS = {"--batch-sizes": [2, 4, 8, 16], "--inference-batch-sizes": [1, 16]}


def parser() -> argparse.ArgumentParser:
    """The options of `align-detr gpu-report`."""
    from detrkit.commands.benchmark import parse_size, positive
    from detrkit.commands.words import add_config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser, "align_detr_r50_4scale_12ep")
    parser.add_argument("--output", type=Path, default=Path("output/gpu"), metavar="FOLDER", help="default: output/gpu")
    parser.add_argument("--image-size", type=parse_size, default=(800, 1333), metavar="HxW", help="default: 800x1333")
    for name, default in LISTS.items():
        text = f"default: {' '.join(map(str, default))}"
        parser.add_argument(name, nargs="+", default=list(map(str, default)), metavar="N", help=text)
    parser.add_argument("--repeats", type=positive, default=7, help="timed runs, after one to warm up (default: 7)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes of the config")
    return parser


def run(args: argparse.Namespace) -> bool:
    """Measure, print the page, and write it to the output folder."""
    from detrkit.commands.benchmark import positive, typed

    batch_sizes = typed(args.batch_sizes, positive, "--batch-sizes")
    inference_batch_sizes = typed(args.inference_batch_sizes, positive, "--inference-batch-sizes")
    from detrkit.benchmark.gpu_report import GpuReport, GpuReportOptions

    options = GpuReportOptions(
        args.config_file, args.opts, args.image_size, batch_sizes, inference_batch_sizes, args.repeats
    )
    for section in GpuReport(options).write(args.output):
        print(section, end="\n\n", flush=True)
    return True


def main(argv: Sequence[str] | None = None) -> None:
    from detrkit.commands.words import parse_words

    args = parse_words(parser(), argv, ("batch_sizes", "inference_batch_sizes"))
    with errors_in_one_line():
        run(args)
