"""`align-detr serve`: detect objects in images that come over HTTP."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from detrkit.commands import command_line
from detrkit.commands.completers import DEVICES
from detrkit.runtime.weight_files import ZOO
from detrkit.serving import EXTRA

DESCRIPTION = """\
Detect objects in images that come over HTTP, and show a page to try images in a browser.

`curl --data-binary @street.jpg "http://127.0.0.1:8000/detect?score_threshold=0.3&top=10"` prints JSON.
SIGTERM or Ctrl-C end the server once the requests in progress are answered."""
EXAMPLES = (
    "align-detr serve output/mine",
    "align-detr serve mine.onnx --port 9000 --batch-size 1",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr serve`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr serve")
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="the folder of a training, a .safetensors, .onnx or .xml file of `align-detr export`, or zoo:NAME",
    ).completer = command_line.complete_checkpoint
    command_line.add_which(parser)
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu (default: the fastest)").completer = (
        lambda **_: DEVICES
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all networks (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 for any free one (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--max-wait",
        type=float,
        default=10,
        metavar="MS",
        help="milliseconds that an image waits for others (default: %(default)s)",
    )
    command_line.add_tiles(parser)
    parser.add_argument(
        "--max-bytes", type=int, default=20_000_000, metavar="N", help="of an image file (default: %(default)s)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=50_000_000, metavar="N", help="of an image (default: %(default)s)"
    )
    parser.add_argument(
        "--score-threshold",
        type=command_line.score,
        metavar="X",
        help="of requests that give none (default: the detector's)",
    )
    parser.add_argument(
        "--top", type=int, default=100, metavar="N", help="detections of requests that give none (default: %(default)s)"
    )
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Check the options before anything is imported.

    Raises:
        ValueError: a value is out of range, or a package is missing.
        FileNotFoundError: there is no such model.
    """
    command_line.check_tiles(args)
    for name in ("batch_size", "max_bytes", "max_pixels", "top"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    if not 0 <= args.max_wait <= 10_000:
        raise ValueError(f"--max-wait {args.max_wait:g}: expected 0 to 10000 milliseconds")
    if not args.model.startswith(ZOO) and not Path(args.model).exists():
        raise FileNotFoundError(f"no such file or folder: {args.model}")
    if not (find_spec("starlette") and find_spec("uvicorn")):
        raise ValueError(f"`align-detr serve` needs packages, starlette and uvicorn: {EXTRA}")


def run(args: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    with command_line.errors_in_one_line():
        check_options(args)
        from detrkit.inference import Detector
        from detrkit.serving.app import Options
        from detrkit.serving.server import address, open_socket, serve

        with open_socket(args.host, args.port) as listening:
            try:
                tiles = {"tile": args.tile, "overlap": args.overlap}
                detector = Detector(args.model, which=args.which, device=args.device, **tiles)
            except ImportError as error:  # a package that only some files need
                raise ValueError(str(error)) from error
            options = Options(
                args.max_bytes, args.max_pixels, args.batch_size, args.max_wait / 1000, args.score_threshold, args.top
            )
            print(f"Serving {args.model} at {address(listening)}", flush=True)
            serve(detector, listening, options)


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
