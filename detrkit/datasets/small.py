"""Write a small dataset in COCO's layout: drawn shapes, or a subset of a real COCO folder."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from .shapes import write_synthetic
from .subset import SPLITS, annotation_path, link_or_copy, plan_subset

MANIFEST = "tiny_coco.json"  # says that the folder is this tool's own
AREA_LIMITS = {"small": 32**2, "medium": 96**2, "large": float("inf")}  # COCO's, pixels


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
    (root / MANIFEST).write_text(json.dumps({"made_by": "align-detr make-data", **how}, indent=2) + "\n")


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


def check(name: str, value: int, minimum: int) -> int:
    if value < minimum:
        raise ValueError(f"--{name} must be at least {minimum}, not {value}")
    return value


def make(
    root: Path,
    *,
    source: Path | None = None,
    images: int = 0,
    train: int = 1600,
    val: int = 100,
    size: int = 128,
    seed: int = 0,
    force: bool = False,
) -> dict[str, dict]:
    """Write a small dataset: a subset of `source` if it is given, otherwise drawn shapes.

    Args:
        root: the folder to write.
        source: a folder in COCO's layout.
        images: how many to take of each split of `source`.
        train: drawn training images.
        val: drawn validation images.
        size: side of the square drawn images, in pixels.
        force: replace what is in the folder.

    Returns:
        The content of the annotation files by split.

    Raises:
        ValueError: a number is too small, or the folders overlap.
        OSError: a folder cannot be read or written, or holds something else.
    """
    check("seed", seed, 0)
    if source is None:
        counts = dict(zip(SPLITS, (check("train", train, 1), check("val", val, 1)), strict=True))
        check("size", size, 64)
        prepare(root, force, {"synthetic": {"train": train, "val": val, "size": size}, "seed": seed})
        written = write_synthetic(root, counts, size, seed)
    else:
        written = plan_subset(source, check("images", images, 1), seed)
        if root.resolve() in (source.resolve(), *source.resolve().parents):
            raise ValueError(f"--output {root} is or contains the source {source}")
        prepare(root, force, {"from": str(source), "images": images, "seed": seed})
        for split, content in written.items():
            for image in content["images"]:
                link_or_copy(source / split / image["file_name"], root / split / image["file_name"])
    for split, content in written.items():
        annotation_path(root, split).write_text(json.dumps(content, separators=(",", ":")))
    return written
