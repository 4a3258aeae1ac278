"""The CSV files of Open Images (https://storage.googleapis.com/openimages/web/download_v7.html)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from .dataset_images import ALL, Problems, relative
from .files import DatasetFiles, beginning, csv_header, csv_rows, read_any_text, split_named, split_of_folders
from .reading import AnnotatedImage, Dataset, Format, LabelledBox, ReadOptions, assemble, one_line
from .values import to_number

COLUMNS = {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
IDENTIFIERS = ("/m/", "/g/", "/t/")  # how the ids of classes begin


def find_open_images(files: DatasetFiles) -> Path | None:
    """A CSV file with the columns ImageID, LabelName, XMin, XMax, YMin, YMax."""
    return next((path for path in files.annotation_files(".csv") if _has_boxes(path)), None)


def read_open_images(files: DatasetFiles, place: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read the CSV files of boxes, for the images that are there: the files list millions of others.

    Class names come from the file of class descriptions, which lies anywhere in the folder. A box around a group
    (`IsGroupOf`) is ignored by training and evaluation.

    Raises:
        ValueError: a row cannot be read; the message names file and line.
    """
    names = _class_names(files, problems)
    images: list[AnnotatedImage] = []
    for file in files.annotation_files(".csv"):
        if _has_boxes(file):
            images += _images(file, files, names, problems)
    return assemble(images, files, problems, options)


def _has_boxes(path: Path) -> bool:
    return set(csv_header(path)) >= COLUMNS


def _class_names(files: DatasetFiles, problems: Problems) -> dict[str, str]:
    """Names by the ids of classes, from all CSV files of two columns whose first holds such ids."""
    names: dict[str, str] = {}
    everywhere = [path for path in files.paths if path.suffix.lower() == ".csv"]
    for path in everywhere:
        lines = beginning(path).splitlines()[:2]
        if any(line.lstrip('"').startswith(IDENTIFIERS) for line in lines):
            for line in read_any_text(path, relative(path, files.root), problems).splitlines():
                identifier, _, name = line.partition(",")
                if name and "," not in identifier:
                    names[identifier.strip('" ')] = one_line(name.strip('" '))
    return names


def _images(file: Path, files: DatasetFiles, names: Mapping[str, str], problems: Problems) -> Iterator[AnnotatedImage]:
    where = relative(file, files.root)
    split = split_named(file.stem) or split_of_folders(file, files.root)
    images: dict[str, AnnotatedImage | None] = {}
    absent = 0
    for line, row in csv_rows(file, where, problems):
        at, identifier = f"{where}, line {line}", row["imageid"]
        if identifier not in images:
            found = files.by_stem(identifier, file.parent) or files.by_name(identifier, file.parent)
            if not found:
                absent += 1
            of_image = split if split != ALL or not found else split_of_folders(found[0], files.root)
            images[identifier] = AnnotatedImage(found[0], at, of_image, is_relative=True) if found else None
        if (image := images[identifier]) is None:
            continue
        label = names.get(row["labelname"]) or one_line(row["labelname"])
        corners = tuple(to_number(row[key]) for key in CORNERS)
        if not label:
            problems.add("object without a class", f"{at}: left out")
        elif None in corners:
            problems.add("object without a box", f"{at} ({label}): no XMin, YMin, XMax and YMax: left out")
        else:
            if label.startswith(IDENTIFIERS):
                problems.add("class without a name", f"{at}: {label} has no description: it is the name")
            is_group = row.get("isgroupof") == "1"
            image.boxes.append(LabelledBox(label, corners, f"{at} ({label})", ignored=is_group))
    if absent:
        problems.add("missing images", f"{where}: {absent} of {len(images)} images are not there: left out")
    yield from filter(None, images.values())


OPEN_IMAGES = Format(
    "open-images",
    "Open Images CSV",
    "CSV file with the columns ImageID, LabelName, XMin, XMax, YMin, YMax",
    find_open_images,
    read_open_images,
)
