"""KITTI's layout: a text file for each image (https://www.cvlibs.net/datasets/kitti/eval_object.php)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .dataset_images import Problems, relative
from .files import DatasetFiles, beginning, read_any_text, split_of_folders
from .reading import AnnotatedImage, Dataset, Format, LabelledBox, ReadOptions, assemble, one_line
from .values import to_number

NUMBERS = (14, 15)  # after the class; the last of 15 is a score
BOX = slice(3, 7)
DONT_CARE = "DontCare"  # a region where objects of all classes may be missing


def find_kitti(files: DatasetFiles) -> Path | None:
    """A text file with rows of a class and 14 numbers."""
    return next((path for path in files.sample(".txt") if _has_rows(path)), None)


def read_kitti(files: DatasetFiles, place: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read the label files: all text files of folders that hold one with KITTI's rows. An empty one is background.

    A `DontCare` region is ignored by the evaluation for every class, and training does not see it.
    """
    images = list(_images(files, problems))
    classes = {box.label for image in images for box in image.boxes} - {DONT_CARE}
    for image in images:
        image.boxes = [
            ignored
            for box in image.boxes
            for ignored in (
                [LabelledBox(label, box.corners, box.where, ignored=True) for label in sorted(classes)]
                if box.label == DONT_CARE
                else [box]
            )
        ]
    return assemble(images, files, problems, options)


def _has_rows(path: Path) -> bool:
    row = next((line for line in beginning(path).splitlines() if line.strip()), "")
    return _parse(row) is not None


def _parse(row: str) -> tuple[str, list[float]] | None:
    """The class and the numbers of a row. A name may consist of several words."""
    words = row.split()
    for count in NUMBERS[::-1]:
        values = [to_number(word) for word in words[-count:]]
        if len(words) > count and None not in values and to_number(words[-count - 1]) is None:
            return one_line(" ".join(words[:-count])), values
    return None


def _images(files: DatasetFiles, problems: Problems) -> Iterator[AnnotatedImage]:
    texts = files.annotation_files(".txt")
    folders = {path.parent for path in texts if _has_rows(path)}
    for file in texts:
        if file.parent not in folders:
            continue
        where = relative(file, files.root)
        text = read_any_text(file, where, problems)
        rows = [(line, row) for line, row in enumerate(text.splitlines(), 1) if row.strip()]
        if not files.by_stem(file.stem, file.parent) and not any(_parse(row) for _, row in rows):
            continue  # a list, or a readme
        path = files.locate("", file.parent, where, problems, stem=file.stem)
        if path is None:
            continue
        image = AnnotatedImage(path, where, split_of_folders(file, files.root))
        for line, row in rows:
            at = f"{where}, line {line}"
            if (parsed := _parse(row)) is None:
                problems.add("row that is no object", f"{at}: {row[:60]}: not a class and 14 numbers: left out")
            else:
                label, values = parsed
                image.boxes.append(LabelledBox(label, tuple(values[BOX]), f"{at} ({label})"))
        yield image


KITTI = Format("kitti", "KITTI", "text files with rows of a class and 14 numbers", find_kitti, read_kitti)
