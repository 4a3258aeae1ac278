"""labelme's layout: a JSON file for each image (https://github.com/wkentaro/labelme)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .annotation_values import is_number
from .dataset_images import Corners, Problems, relative
from .files import DatasetFiles, beginning, read_json, split_of_folders
from .reading import AnnotatedImage, Dataset, Format, LabelledBox, ReadOptions, assemble, one_line

WITHOUT_AREA = ("point", "points", "line", "linestrip")


def find_labelme(files: DatasetFiles) -> Path | None:
    """A JSON file that lists shapes."""
    return next((path for path in files.sample(".json") if is_labelme(path)), None)


def is_labelme(path: Path) -> bool:
    text = beginning(path)
    return '"shapes"' in text and any(f'"{key}"' in text for key in ("imagePath", "flags", "version"))


def read_labelme(files: DatasetFiles, place: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read labelme's files. The box of a shape encloses its points; a circle is its centre and a point on it.

    Shapes of one label and one `group_id` are parts of one object. An image whose file has no shapes is background.
    """
    return assemble(_images(files, problems), files, problems, options)


def _images(files: DatasetFiles, problems: Problems) -> Iterator[AnnotatedImage]:
    for file in files.annotation_files(".json"):
        where = relative(file, files.root)
        if not is_labelme(file):
            continue
        try:
            content = read_json(file, where, problems)
        except (OSError, ValueError) as error:
            problems.add("broken annotation file", f"{where}: {error}: image left out")
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            problems.add("broken annotation file", f"{where}: it has no list of shapes: image left out")
            continue
        name = content.get("imagePath")
        path = files.locate(name if isinstance(name, str) else "", file.parent, where, problems, stem=file.stem)
        if path is not None:
            size = content.get("imageWidth"), content.get("imageHeight")
            yield AnnotatedImage(
                path,
                where,
                split_of_folders(file, files.root),
                _boxes(content["shapes"], where, problems),
                size if all(is_number(side) and side > 0 for side in size) else None,
            )


def _boxes(shapes: list, where: str, problems: Problems) -> list[LabelledBox]:
    boxes: list[LabelledBox] = []
    groups: dict[tuple[str, Any], LabelledBox] = {}
    for number, shape in enumerate(shapes):
        at = f"{where}, shapes[{number}]"
        if not isinstance(shape, dict):
            problems.add("entry that is no object", f"{at}: left out")
            continue
        label = one_line(shape["label"]) if isinstance(shape.get("label"), str) else ""
        if not label:
            problems.add("object without a class", f"{at}: left out")
            continue
        corners = _corners(shape)
        if corners is None:
            kind = str(shape.get("shape_type") or "shape")[:30]
            problems.add("object without a box", f"{at} ({label}): a {kind} that encloses nothing: left out")
            continue
        group = shape.get("group_id")
        key = (label, str(group))
        if group is not None and key in groups:
            joined = groups[key]
            joined.corners = (*map(min, joined.corners[:2], corners[:2]), *map(max, joined.corners[2:], corners[2:]))
            continue
        box = LabelledBox(label, corners, f"{at} ({label})")
        boxes.append(box)
        if group is not None:
            groups[key] = box
    return boxes


def _corners(shape: dict) -> Corners | None:
    points = shape.get("points")
    if shape.get("shape_type") in WITHOUT_AREA or not isinstance(points, list) or len(points) < 2:
        return None
    if not all(isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in points):
        return None
    if shape.get("shape_type") == "circle":
        (x, y), rim = points[0], points[1]
        radius = math.dist((x, y), rim)
        return x - radius, y - radius, x + radius, y + radius
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


LABELME = Format("labelme", "labelme", "JSON files with shapes", find_labelme, read_labelme)
