"""The CSV file that TensorFlow's object detection tutorials make of Pascal VOC, a row for each object.

Its columns are `filename,width,height,class,xmin,ymin,xmax,ymax`, in any order and with other names in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .dataset_images import ALL, Problems, relative
from .files import DatasetFiles, csv_header, csv_rows, split_named, split_of_folders
from .reading import AnnotatedImage, Dataset, Format, LabelledBox, ReadOptions, assemble, one_line
from .values import positive_size, to_number

COLUMNS = {  # other names of a column
    "filename": ("filename", "file_name", "image", "image_name", "image_path", "path", "file", "img"),
    "class": ("class", "label", "class_name", "category", "name"),
    "xmin": ("xmin", "x_min", "x1"),
    "ymin": ("ymin", "y_min", "y1"),
    "xmax": ("xmax", "x_max", "x2"),
    "ymax": ("ymax", "y_max", "y2"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}
OPTIONAL = {"width", "height"}
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find_tensorflow_csv(files: DatasetFiles) -> Path | None:
    """A CSV file with the columns of an image's name, a class and the corners of a box."""
    return next((path for path in files.annotation_files(".csv") if _columns(path)), None)


def read_tensorflow_csv(files: DatasetFiles, place: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read the CSV files; each is of the split that it or its folder is named after.

    Coordinates are pixels, or shares of the image if none in a file is above 1. A row without class and coordinates is
    an image without objects.

    Raises:
        ValueError: a row cannot be read; the message names file and line.
    """
    images: list[AnnotatedImage] = []
    for file in files.annotation_files(".csv"):
        if columns := _columns(file):
            images += _images(file, columns, files, problems)
    return assemble(images, files, problems, options)


def _columns(file: Path) -> dict[str, str] | None:
    """The file's name of each column; None if it is another kind of file."""
    header = csv_header(file)
    found = {key: next((name for name in names if name in header), None) for key, names in COLUMNS.items()}
    found = {key: name for key, name in found.items() if name}
    return found if not COLUMNS.keys() - found.keys() - OPTIONAL else None


def _images(file: Path, columns: Mapping[str, str], files: DatasetFiles, problems: Problems) -> list[AnnotatedImage]:
    where = relative(file, files.root)
    split = split_named(file.stem) or split_of_folders(file, files.root)
    images: dict[str, AnnotatedImage | None] = {}
    for line, row in csv_rows(file, where, problems):
        values = {key: row[name] for key, name in columns.items()}
        at, name = f"{where}, line {line}", values["filename"]
        if not name:
            problems.add("row without an image", f"{at}: left out")
            continue
        if name not in images:
            path = files.locate(name, file.parent, at, problems)
            size = positive_size(values.get("width"), values.get("height"))
            of_image = split if split != ALL or path is None else split_of_folders(path, files.root)
            images[name] = path and AnnotatedImage(path, at, of_image, size=size)
        if images[name] is None:
            continue
        label, corners = one_line(values["class"]), tuple(to_number(values[key]) for key in CORNERS)
        if not label and not any(values[key] for key in CORNERS):
            continue
        if not label:
            problems.add("object without a class", f"{at}: left out")
        elif None in corners:
            shown = ", ".join(values[key] for key in CORNERS)[:60]
            problems.add("object without a box", f"{at} ({label}): {shown} are not four numbers: left out")
        else:
            images[name].boxes.append(LabelledBox(label, corners, f"{at} ({label})"))
    found = [image for image in images.values() if image]
    coordinates = [value for image in found for box in image.boxes for value in box.corners]
    if coordinates and 0 <= min(coordinates) and max(coordinates) <= 1:
        problems.add("coordinates up to 1", f"{where}: taken as parts of the image's width and height")
        for image in found:
            image.is_relative = True
    return found


TENSORFLOW_CSV = Format(
    "tensorflow-csv",
    "TensorFlow CSV",
    "CSV file with the columns filename, class, xmin, ymin, xmax, ymax",
    find_tensorflow_csv,
    read_tensorflow_csv,
    is_derived=True,
)
