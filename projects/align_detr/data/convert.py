"""Pascal VOC and YOLO folders to COCO's annotation format (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tabulate import tabulate

from .pictures import Picture, Problems
from .voc import DIFFICULT, find_voc, read_voc
from .yolo import find_yolo, read_yolo

FORMATS = ("voc", "yolo")


@dataclass
class Conversion:
    """What `convert_dataset` wrote.

    Attributes:
        files: the annotation file of each split.
        contents: what is in it.
        image_root: the folder that its file names are relative to.
        problems: what was found wrong with the dataset.
    """

    files: dict[str, Path]
    contents: dict[str, dict]
    image_root: Path
    problems: Problems

    @property
    def classes(self) -> list[str]:
        return [category["name"] for category in next(iter(self.contents.values()))["categories"]]

    def summary(self) -> str:
        """A table of what there is by split and class, and of the problems; then the lines for a config."""
        names = {c["id"]: c["name"] for c in next(iter(self.contents.values()))["categories"]}
        rows = []
        for content in self.contents.values():
            boxes = [a for a in content["annotations"] if not a["iscrowd"]]
            empty = len(content["images"]) - len({a["image_id"] for a in content["annotations"]})
            by_class = Counter(names[a["category_id"]] for a in boxes)
            ignored = len(content["annotations"]) - len(boxes)
            rows.append([len(content["images"]), empty, len(boxes), ignored, *(by_class[n] for n in names.values())])
        header = ["images", "without objects", "objects", "ignored", *(f"  {name}" for name in names.values())]
        table = [[name, *values] for name, values in zip(header, zip(*rows, strict=True), strict=True)]
        parts = [tabulate(table, ["", *self.contents], disable_numparse=True)]
        if counts := self.problems.counts:
            parts.append(tabulate(counts.items(), ["problem", "times"], disable_numparse=True))
        lines = [
            f"register_coco({_name_of(file)!r}, {file.as_posix()!r}, {self.image_root.as_posix()!r})"
            for file in self.files.values()
        ]
        parts.append("\n".join([f"For a config, with model.num_classes = {len(names)}:", *lines]))
        return "\n\n".join(parts)


def _name_of(file: Path) -> str:
    return f"{file.absolute().parent.name}_{file.stem}"


def convert_dataset(
    source: str | Path,
    output: str | Path,
    *,
    format: str | None = None,
    classes: Sequence[str] | None = None,
    difficult: str = "ignore",
    zero_based: bool = False,
    copy_images: bool = False,
    decode: bool = True,
    force: bool = False,
) -> Conversion:
    """Writes `<output>/<split>.json` for each split of a Pascal VOC or YOLO dataset, which stays as it is.

    What is wrong with the dataset is left out or mended and told by `Conversion.problems`; nothing else is lost.

    Args:
        source: the dataset's folder, or YOLO's data.yaml.
        output: the folder to write.
        format: "voc" or "yolo"; None finds out.
        classes: class names in the order of their ids. VOC objects of others are left out; without it, the classes are
            those that occur, by name. For YOLO, names instead of those in data.yaml.
        difficult, zero_based: of VOC, see `read_voc`.
        copy_images: copy the images to `<output>/images`; otherwise the annotations refer to them where they are.
        decode: read every image to its end, as training will; otherwise only as far as its size.
        force: replace annotation files that are there.

    Raises:
        FileNotFoundError: no such folder.
        FileExistsError: an annotation file is there, and `force` is not given.
        ValueError: the folder has no known layout, or nothing in it can be used.
    """
    source, output = Path(source), Path(output)
    if not source.exists():
        raise FileNotFoundError(f"no such folder: {source}")
    if difficult not in DIFFICULT:
        raise ValueError(f"difficult={difficult!r}: choose one of {', '.join(DIFFICULT)}")
    classes = list(dict.fromkeys(classes)) if classes else None
    problems = Problems()
    root = _recognise(source, format)
    if root[0] == "voc":
        pictures, images = read_voc(root[1], problems, difficult=difficult, zero_based=zero_based, decode=decode)
        names = classes or sorted({box.label for split in pictures.values() for p in split for box in p.boxes})
        _drop_strangers(pictures, names, problems)
    else:
        pictures, images, names = read_yolo(root[1], problems, classes=classes, decode=decode)
        names = list(dict.fromkeys(names))
    _check_splits(pictures, names, problems)
    pictures = {split: found for split, found in pictures.items() if found}
    if not any(p.boxes for found in pictures.values() for p in found):
        kind, count = next(iter(problems.counts.items()), ("", 0))
        what = f"no objects in {source}" if pictures else f"no images with annotations in {source}"
        raise ValueError(f"{what} that could be used" + (f"; {problems.report()[0]} ({kind}: {count})" if kind else ""))

    files = {split: output / f"{split}.json" for split in pictures}
    if taken := [file for file in files.values() if file.exists()]:
        if not force:
            raise FileExistsError(f"{taken[0]} is there already: name another output, or replace it by --force")
    output.mkdir(parents=True, exist_ok=True)
    file_names = _file_names({p.path for found in pictures.values() for p in found}, images)
    if copy_images:
        images = output / "images"
        file_names = {path: _below(name) for path, name in file_names.items()}
        for path, name in file_names.items():
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, images / name)
    contents = {split: to_coco(found, names, file_names) for split, found in pictures.items()}
    for split, content in contents.items():
        unfinished = files[split].with_suffix(".part")
        unfinished.write_text(json.dumps(content))
        unfinished.replace(files[split])
    return Conversion(files, contents, images, problems)


def to_coco(pictures: Sequence[Picture], classes: Sequence[str], file_names: dict[Path, str]) -> dict:
    """The content of a COCO annotation file; ids count from 1, and boxes to ignore are crowds."""
    ids = {name: number for number, name in enumerate(classes, 1)}
    images, annotations = [], []
    for image_id, picture in enumerate(pictures, 1):
        name = file_names[picture.path]
        images.append({"id": image_id, "file_name": name, "width": picture.width, "height": picture.height})
        for box in picture.boxes:
            left, top, right, bottom = box.corners
            width, height = round(right - left, 3), round(bottom - top, 3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[box.label],
                    "bbox": [left, top, width, height],
                    "area": round(width * height, 3),
                    "iscrowd": int(box.ignored),
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _recognise(source: Path, format: str | None) -> tuple[str, Path]:
    """The format, and where its reader is to begin."""
    if format not in (None, *FORMATS):
        raise ValueError(f"format={format!r}: choose one of {', '.join(FORMATS)}")
    found = {}
    if format in (None, "voc") and source.is_dir():
        found["voc"] = find_voc(source)
    if format in (None, "yolo"):
        found["yolo"] = find_yolo(source)
    found = {name: place for name, place in found.items() if place}
    if len(found) > 1:
        raise ValueError(f"{source} looks like VOC ({found['voc']}) and YOLO ({found['yolo']}): say --format")
    if not found:
        expected = {
            "voc": "a folder Annotations, or XML files beside the images",
            "yolo": "data.yaml, or a list of class names in classes.txt",
        }
        wanted = " and no ".join(f"{what} ({name})" for name, what in expected.items() if format in (None, name))
        raise ValueError(f"{source} has no {wanted}")
    return next(iter(found.items()))


def _drop_strangers(pictures: dict[str, list[Picture]], classes: list[str], problems: Problems) -> None:
    known = set(classes)
    for picture in {id(p): p for found in pictures.values() for p in found}.values():
        for box in picture.boxes:
            if box.label not in known:
                problems.add("unknown class", f"{picture.path.name}: {box.label} is none of --classes: left out")
        picture.boxes = [box for box in picture.boxes if box.label in known]


def _check_splits(pictures: dict[str, list[Picture]], classes: list[str], problems: Problems) -> None:
    """Tells of what is no fault of a single file, and yet often a mistake."""
    for split, found in pictures.items():
        if not found:
            problems.add("split without images", f"{split}: not written")
    for one, other in combinations(pictures, 2):
        if {one, other} <= {"train", "val", "trainval"} and "trainval" in (one, other):
            continue
        paths = {picture.path for picture in pictures[one]}
        if shared := [p.path.name for p in pictures[other] if p.path in paths]:
            line = f"{len(shared)} images of {other} are in {one} too, such as {shared[0]}"
            problems.add("images in two splits", line)
    for one, other in combinations(classes, 2):
        if one.lower() == other.lower():
            problems.add("classes that differ in case", f"{one} and {other}: taken as two")


def _file_names(paths: set[Path], root: Path) -> dict[Path, str]:
    """Names below `root`; whole paths of images that lie elsewhere."""
    inside = {path: path.is_relative_to(root) for path in paths}
    return {
        path: path.relative_to(root).as_posix() if inside[path] else Path(os.path.abspath(path)).as_posix()
        for path in paths
    }


def _below(name: str) -> str:
    """A name for the copy of an image, also of one that lies elsewhere."""
    return Path(name).relative_to(Path(name).anchor).as_posix()
