"""`align-detr demo`: detect objects in images and films, and draw them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line

DESCRIPTION = """\
Detect objects in images and films, and draw them.

Give published weights by name (`align-detr weights list`), the folder of a training, a file of `align-detr export`
(.safetensors, .onnx, .xml), or a CONFIG with --checkpoint.
A file that cannot be read is named and left out, and the exit status is 1.
Of a film, frame after frame is read; NAME.webm has the boxes, NAME.jsonl a line of detections for each frame."""
EXAMPLES = (
    "align-detr demo --weights zoo:align_detr_r50_4scale_12ep --input street.jpg",
    "align-detr demo output/align_detr_tiny --input datasets/tiny_coco/val2017",
    "align-detr demo align_detr_tiny --checkpoint output/align_detr_tiny/model_final.pth --input a.jpg b.jpg",
    "align-detr demo output/align_detr_tiny --input harbour.tif --tile 640",
    "align-detr demo output/align_detr_tiny --input street.mp4 --track",
)
FILM_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr demo`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr demo")
    command_line.add_config(
        parser, "the folder of a training, an exported file, or a config", metavar="FOLDER|FILE|CONFIG"
    )
    command_line.add_checkpoint(parser, "weights: .pth, .safetensors or zoo:NAME")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders, globs; or films")
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write detections in COCO's results format")
    parser.add_argument("--font", metavar="FILE", help="font file for the labels (default: one with their letters)")
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing, write --json alone")
    parser.add_argument(
        "--score-threshold",
        type=command_line.score,
        metavar="X",
        help="lowest score to keep (default: the one that `align-detr errors` chose for these weights, else 0.3)",
    )
    parser.add_argument(
        "--top", type=int, default=100, metavar="N", help="most detections of an image (default: %(default)s)"
    )
    parser.add_argument("--layer", type=int, metavar="N", help="decoder layer to show, from 1 (default: the last)")
    parser.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="images of one size at a time (default: %(default)s)"
    )
    command_line.add_tiles(parser)
    parser.add_argument("--track", action="store_true", help="of films: number the objects from frame to frame")
    parser.add_argument(
        "--frame-rate", type=float, metavar="X", help="take folders as films of X frames (images) per second"
    )
    command_line.add_tta(parser)
    command_line.add_runtime(parser)
    command_line.add_overrides(parser)
    return parser


def films_among(args: argparse.Namespace) -> list[Path]:
    """Return the inputs if they are films; [] if they are images.

    Raises:
        ValueError: there are both, or options do not fit.
    """
    paths = [Path(text) for text in args.input]
    films = [p for p in paths if p.suffix.lower() in FILM_SUFFIXES or (args.frame_rate is not None and p.is_dir())]
    if not films:
        if args.track or args.frame_rate is not None:
            raise ValueError("--track and --frame-rate are for films: give a film, or a folder and --frame-rate")
        return []
    if len(films) < len(paths):
        other = next(path for path in paths if path not in films)
        raise ValueError(f"{other} is not a film, but {films[0]} is: give films and images in separate calls")
    if args.json or args.layer is not None:
        raise ValueError("--json and --layer are for images: detections in films are in NAME.jsonl of --output")
    if args.frame_rate is not None and not 0 < args.frame_rate <= 1000:
        raise ValueError(f"--frame-rate {args.frame_rate:g}: expected more than 0, at most 1000")
    if missing := [film for film in films if not film.exists()]:
        raise FileNotFoundError(f"no such film: {missing[0]}")
    return films


def check_options(args: argparse.Namespace) -> None:
    """Check that options fit together, before anything is imported.

    Raises:
        ValueError: they do not.
        FileNotFoundError: config or checkpoint are not there.
    """
    if args.batch_size < 1 or args.top < 1:
        raise ValueError("--batch-size and --top are at least 1")
    if args.tta and args.layer is not None:
        raise ValueError(f"--layer {args.layer} shows one decoder layer of one pass: leave out --tta")
    command_line.check_tiles(args)
    if not films_among(args) and args.no_pictures and not args.json:
        raise ValueError("--no-pictures leaves nothing to do without --json")
    if not (args.config or args.checkpoint):
        raise ValueError("no detector: give the folder of a training, an exported file, or a config and --checkpoint")
    command_line.check_exist(args.config, args.checkpoint, "folder, file or config")
    if not args.no_pictures or films_among(args):
        command_line.check_output_folder(args.output)
    command_line.check_output_file(args.json, "--json")
    if args.config and not args.checkpoint and args.config.endswith((".py", ".yaml")):
        raise ValueError(f"{args.config} has no weights: give them by --checkpoint")


def detect(args: argparse.Namespace) -> bool:
    """Detect, draw and print a summary; return whether every input was read."""
    check_options(args)
    config, checkpoint, _ = command_line.find_named(args)
    if not checkpoint:
        raise ValueError(f"{config} has no weights: give them by --checkpoint")
    if films := films_among(args):
        return detect_in_films(args, config, checkpoint, films)
    from detrkit.inference import demo

    options = demo.Options(
        None if args.no_pictures else args.output,
        args.json,
        args.font,
        args.score_threshold,
        args.top,
        args.layer,
        args.batch_size,
        args.tile,
        args.overlap,
        args.runtime,
        args.dtype,
    )
    outcome = demo.detect(config, checkpoint, args.input, options, command_line.with_tta(args))
    print(outcome.line(options))
    return not outcome.failed


def detect_in_films(args: argparse.Namespace, config: str, checkpoint: str, films: Sequence[Path]) -> bool:
    """Detect, write and print a summary of each film; return whether all were read to their end."""
    from detrkit.inference import demo, film

    options = film.FilmOptions(
        args.output,
        not args.no_pictures,
        args.font,
        args.score_threshold,
        args.top,
        args.batch_size,
        args.track,
        args.frame_rate or 0.0,
    )
    overrides = command_line.with_tta(args)
    detector = demo.open_detector(config, checkpoint, overrides, args.tile, args.overlap, args.runtime, args.dtype)
    outcomes = film.detect_films(detector, films, options)
    for outcome in outcomes:
        print(outcome.line())
    return not any(outcome.problem for outcome in outcomes)


def run(args: argparse.Namespace) -> None:
    """Detect and draw; exit with status 1 if an input could not be read."""
    command_line.finish(lambda: detect(args))


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
