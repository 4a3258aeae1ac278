"""`align-detr benchmark`: time the parts of a config."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.commands import command_line

if TYPE_CHECKING:
    from detrkit.benchmark.suite import BenchmarkOptions

DESCRIPTION = """\
Time a config's criterion, deformable attention, training step, inference and data loading on this device.

    criterion   the losses with their matching, forward and backward, for random predictions in the detector's shapes
    attention   deformable attention alone, forward and backward, with the inputs of the first such layer of encoder and
                decoder; on a GPU also compared with the least time of its memory traffic
    step        a step of align-detr train: forward, backward, clipping, optimizer; and the share of each part
    inference   from a batch of images to detections
    data        `dataloader.train` alone; and one process, compared with decoding alone
    augmentation
                large-scale jitter, colour, mosaic, copy-paste and transforms of installed libraries, one at a time: the
                processor time of one process for an image of the training data
    workers     memory and start of 1 and 8 data workers, with annotations of as many images and boxes as COCO's
    growth      how time and memory of a training step grow with image size, batch, objects and queries, one at a time
                from the first value of each; and the operations of its matrix products
    runtimes    one image by PyTorch, ONNX Runtime and OpenVINO in several precisions, on the CPU: time, size of the
                files, and with train.init_checkpoint=FILE the average precision on the test data

Images are noise with random objects, except for `data`, `augmentation` and `workers`. Times are medians after a
warm-up, ± the interquartile range. Memory is the peak of a run: on a GPU by PyTorch's allocator, on Linux by a separate
process; for step and inference it includes the model. `--reference` times the plain formulations of tests/reference in
turn with ours, and `--beside` the same with other options, such as train.amp.enabled=False; "of reference" and "of
beside" are ours divided by theirs."""
EXAMPLES = (
    "align-detr benchmark align_detr_tiny --parts criterion step --batch-sizes 2 4",
    "align-detr benchmark align_detr_r50_4scale_12ep --parts inference --image-sizes 480x640 train.device=cpu",
    "align-detr benchmark output/align_detr_tiny/config.yaml --parts runtimes "
    "train.init_checkpoint=output/align_detr_tiny/model_final.pth",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr benchmark`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr benchmark")
    command_line.add_config(parser)
    parser.add_argument(
        "--parts",
        nargs="+",
        default=[],
        metavar="PART",
        help="what to time (default: criterion, attention, step, inference and data)",
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        default=[],
        metavar="N",
        help="default: 2 to 32 for the criterion, 1 to 4 for growth, else 2, on a GPU 2 to 16",
    )
    parser.add_argument(
        "--image-sizes",
        nargs="+",
        default=[],
        metavar="HxW",
        help="default: 480x640; on a GPU 800x1066 too; for growth 240x320 first",
    )
    parser.add_argument(
        "--objects",
        nargs="+",
        default=[],
        metavar="N",
        help="per image, for the criterion: all batch sizes with the first number, the middle batch size with the "
        "others (default: 7 14 28 56)",
    )
    parser.add_argument("--repeats", type=positive, default=7, help="timed runs, after one to warm up (default: 7)")
    parser.add_argument("--reference", action="store_true", help="time the plain formulations as well")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="key=value",
        help="time the same with this change too, by turns; may be given several times",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    command_line.add_overrides(parser)
    return parser


def measure(args: argparse.Namespace) -> None:
    """Print the tables, and write the JSON file."""
    options = options_of(args)
    from detrkit.benchmark.suite import Benchmark

    benchmark = Benchmark(options)
    for text in benchmark.run():
        print(text, flush=True)
    if args.json:
        args.json.write_text(json.dumps(benchmark.results(), indent=1))


def options_of(args: argparse.Namespace) -> BenchmarkOptions:
    """The options as the library takes them.

    Raises:
        ValueError: a word is not a value of its option.
    """
    numbers = {
        "batch_sizes": typed(args.batch_sizes, positive, "--batch-sizes"),
        "image_sizes": typed(args.image_sizes, parse_size, "--image-sizes"),
        "objects": typed(args.objects, positive, "--objects"),
    }
    from detrkit.benchmark.suite import BenchmarkOptions

    given = {name: values for name, values in {"parts": args.parts, **numbers}.items() if values}
    return BenchmarkOptions(
        args.config, args.overrides, repeats=args.repeats, reference=args.reference, beside=args.beside, **given
    )


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of a text such as "480x640"."""
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text} is no image size, such as 480x640, height before width")
    return int(height), int(width)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 up")
    return int(text)


def typed(words: Iterable[str], parse: Callable[[str], Any], option: str) -> list[Any]:
    """The values of an option's words.

    Raises:
        ValueError: a word is not a value of the option.
    """
    try:
        return [parse(word) for word in words]
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{option}: {error}") from None


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    with command_line.errors_in_one_line():
        measure(args)


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
