"""`align-detr push`: upload a detector to the Hugging Face hub, with a model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrkit.commands import command_line
from detrkit.runtime.weight_files import ZOO

DESCRIPTION = """\
Upload a detector to the Hugging Face hub, with a model card: classes, metrics, how to use it, and pictures.

`Detector.from_pretrained("user/name")` loads it. `hf auth login` stores the access token."""
EXAMPLES = (
    "align-detr push output/align_detr_tiny user/name --picture street.jpg",
    "align-detr push output/align_detr_tiny --folder published",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of `align-detr push`."""
    parser = command_line.CommandParser(DESCRIPTION, EXAMPLES, prog="align-detr push")
    parser.add_argument(
        "source", metavar="FOLDER|FILE", help="the folder of a training, or an exported .safetensors file"
    )
    parser.add_argument("repository", nargs="?", default="", metavar="USER/NAME", help="repository on the hub")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="write the files to a folder, and upload nothing")
    command_line.add_which(parser)
    parser.add_argument(
        "--picture",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="images on which the card shows detections",
    )
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    return parser


def run(args: argparse.Namespace) -> None:
    """Write or upload the detector."""
    with command_line.errors_in_one_line():
        if bool(args.repository) == bool(args.folder):
            raise ValueError("give either a repository, as USER/NAME, or --folder")
        for file in (args.source, *args.picture):
            if not file.startswith(ZOO) and not Path(file).exists():
                raise FileNotFoundError(f"no such file or folder: {file}")
        from detrkit.inference import Detector

        detector = Detector(args.source, which=args.which, device="cpu")
        if args.folder:
            print(f"Wrote {detector.save_pretrained(args.folder, pictures=args.picture)}")
        else:
            print(detector.push_to_hub(args.repository, private=args.private, pictures=args.picture))


def main(argv: Sequence[str] | None = None) -> None:
    run(command_line.parse(parser(), argv))
