"""Writes a small dataset in COCO's layout: drawn shapes, or a subset of a real COCO folder."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from detrkit.datasets.shapes import write_synthetic
from detrkit.datasets.subset import SPLITS, annotation_path, link_or_copy, plan_subset

SYNTHETIC_DEFAULTS = {"train": 1600, "val": 100, "size": 128}
MANIFEST = "tiny_coco.json"  # says that the folder is this tool's own
AREA_LIMITS = {"small": 32**2, "medium": 96**2, "large": float("inf")}  # COCO's, pixels

EPILOG = """\
examples:
  align-detr make-data --synthetic
  align-detr make-data --synthetic --train 2000 --val 400 --size 192 --output datasets/shapes
  align-detr make-data --from datasets/coco --images 50

The drawn images hold striped circles, chequered squares and blotched triangles, stretched and tilted, on greyish
backgrounds. Colour and (as far as a shape of that area fits in) size say nothing about the class. Later shapes hide
parts of earlier ones; boxes, areas and polygons are those of the visible pixels. Every 12th image has a crowd region
(a cluster of one class, iscrowd=1, run-length encoded), every 25th has no object at all. Image i depends on --seed,
--size and i alone, so that a larger --train extends a smaller one.

A subset has --images images of each split, drawn at random, but with crowd regions (a tenth of the images) and an
image without objects among them where the source has any. Images are hard-linked where the file system allows,
else copied.
"""


def prepare(root: Path, force: bool, how: dict) -> None:
    """Makes the folders, without what an earlier run left in them.

    Raises:
        FileExistsError: something else is there and `force` is not given.
    """
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file, not a folder")
    if root.is_dir() and any(root.iterdir()) and not (root / MANIFEST).is_file() and not force:
        raise FileExistsError(
            f"{root} is not empty and not this tool's: name another --output, or replace its "
            f"{', '.join(SPLITS)} and annotations by --force"
        )
    for split in SPLITS:
        folder = root / split
        # Emptied rather than written over: its files may be hard links to the ones of a real COCO folder.
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
        annotation_path(root, split).unlink(missing_ok=True)
        folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    (root / MANIFEST).write_text(json.dumps({"made_by": "make_tiny_coco.py", **how}, indent=2) + "\n")


def size_name(area: float) -> str:
    return next(name for name, limit in AREA_LIMITS.items() if area < limit)


def summary(written: dict[str, dict], max_classes: int = 10) -> str:
    """A table of images and objects by split, and by class: all of them, or the `max_classes` most common."""
    header = ("", "images", "empty", "objects", *AREA_LIMITS, "crowds")
    rows: list[tuple] = [header]

    def counts(annotations: Iterable[dict]) -> tuple[int, ...]:
        objects = Counter(size_name(a["area"]) for a in annotations if not a.get("iscrowd"))
        crowds = sum(bool(a.get("iscrowd")) for a in annotations)
        return (sum(objects.values()), *(objects[size] for size in AREA_LIMITS), crowds)

    for split, content in written.items():
        annotations = content["annotations"]
        used = {a["image_id"] for a in annotations}
        empty = sum(image["id"] not in used for image in content["images"])
        rows.append((split, len(content["images"]), empty, *counts(annotations)))
        by_class = defaultdict(list)
        for a in annotations:
            by_class[a["category_id"]].append(a)
        names = {category["id"]: category["name"] for category in content["categories"]}
        ranked = sorted(names, key=lambda id: -len(by_class[id])) if len(names) > max_classes else list(names)
        for id in ranked[:max_classes]:
            rows.append((f"  {names[id]}", "", "", *counts(by_class[id])))
        if rest := ranked[max_classes:]:
            others = [a for id in rest for a in by_class[id]]
            rows.append((f"  {len(rest)} more classes", "", "", *counts(others)))
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(header))]
    left, *right = widths
    return "\n".join(
        "  ".join([f"{name:<{left}}", *(f"{cell!s:>{width}}" for cell, width in zip(cells, right, strict=True))])
        for name, *cells in rows
    )


def default_output() -> Path:
    return Path(os.environ.get("TINY_COCO_ROOT") or "datasets/tiny_coco").expanduser()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--synthetic", action="store_true", help="draw shapes")
    what.add_argument("--from", dest="source", type=Path, metavar="DIR", help="take a subset of this COCO folder")
    drawing = parser.add_argument_group("with --synthetic")
    meanings = {"train": "training images", "val": "validation images", "size": "side of the square images, pixels"}
    for name, default in SYNTHETIC_DEFAULTS.items():
        # No default here, so that the option can be refused with --from.
        drawing.add_argument(f"--{name}", type=int, metavar="N", help=f"{meanings[name]} (default: {default})")
    taking = parser.add_argument_group("with --from")
    taking.add_argument("--images", type=int, metavar="N", help="images of each split (required)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random choices (default: 0)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=default_output(),
        help="folder to write (default: the environment variable TINY_COCO_ROOT, else datasets/tiny_coco)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="write into a folder that holds something else")
    args = parser.parse_args(argv)

    foreign = ("images",) if args.synthetic else SYNTHETIC_DEFAULTS
    for name in foreign:
        if getattr(args, name) is not None:
            parser.error(f"--{name} does not go with {'--synthetic' if args.synthetic else '--from'}")
    if args.source is not None and args.images is None:
        parser.error("--from needs --images")
    return args


def check(name: str, value: int, minimum: int) -> int:
    if value < minimum:
        raise ValueError(f"--{name} must be at least {minimum}, not {value}")
    return value


def make(args: argparse.Namespace) -> dict[str, dict]:
    """Writes the folder that `args` describes; returns the annotation files' content by split."""
    root: Path = args.output
    seed = check("seed", args.seed, 0)
    if args.synthetic:
        options = {name: getattr(args, name) for name in SYNTHETIC_DEFAULTS}
        options = {name: SYNTHETIC_DEFAULTS[name] if v is None else v for name, v in options.items()}
        counts = {split: check(name, options[name], 1) for split, name in zip(SPLITS, ("train", "val"), strict=True)}
        size = check("size", options["size"], 64)
        prepare(root, args.force, {"synthetic": options, "seed": seed})
        written = write_synthetic(root, counts, size, seed)
    else:
        source: Path = args.source
        written = plan_subset(source, check("images", args.images, 1), seed)
        if root.resolve() in (source.resolve(), *source.resolve().parents):
            raise ValueError(f"--output {root} is or contains the source {source}")
        prepare(root, args.force, {"from": str(source), "images": args.images, "seed": seed})
        for split, content in written.items():
            for image in content["images"]:
                link_or_copy(source / split / image["file_name"], root / split / image["file_name"])
    for split, content in written.items():
        annotation_path(root, split).write_text(json.dumps(content, separators=(",", ":")))
    return written


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    started = time.perf_counter()
    try:
        written = make(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(summary(written))
    print(f"\nWrote {args.output} in {time.perf_counter() - started:.1f} s")
