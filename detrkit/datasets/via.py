"""The layouts of VGG Image Annotator 1 and 2 (https://www.robots.ox.ac.uk/~vgg/software/via/): JSON or CSV."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .annotation_values import is_number
from .dataset_images import ALL, Corners, Problems, relative
from .files import DatasetFiles, beginning, csv_header, csv_rows, read_json, split_named, split_of_folders
from .reading import AnnotatedImage, Dataset, Format, LabelledBox, ReadOptions, assemble, one_line
from .values import rotated_ellipse

CLASS_ATTRIBUTES = ("class", "label", "category", "name", "type", "object", "class_name", "object_name")
NAMELESS = "object"  # the class of a dataset whose regions have no attributes


@dataclass
class _Region:
    image: str
    file: Path
    where: str
    shape: Any
    attributes: Any


def find_via(files: DatasetFiles) -> Path | None:
    """A project or an export of annotations, JSON or CSV."""
    return next((path for path in files.annotation_files(".json", ".csv") if _is_via(path)), None)


def read_via(files: DatasetFiles, place: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read VIA's files. The box of a region encloses it; points and lines have no box.

    The class is the region's only attribute, or the one called class, label, category, name, type or object. Ticks give
    an object of each class that is ticked. If no region has an attribute, all are of one class, "object" or the one in
    `options.classes`. An image without regions is background.

    Raises:
        ValueError: a file is broken, or there are several attributes and none of them is called so.
    """
    names: dict[tuple[Path, str], AnnotatedImage | None] = {}
    regions: list[_Region] = []
    for file in files.annotation_files(".json", ".csv"):
        if not _is_via(file):
            continue
        split = split_named(file.stem) or split_of_folders(file, files.root)
        found = _of_csv(file, files, problems) if file.suffix.lower() == ".csv" else _of_json(file, files, problems)
        for region in found:
            key = file, region.image
            if key not in names:
                path = files.locate(region.image, file.parent, region.where, problems)
                of_image = split if split != ALL or path is None else split_of_folders(path, files.root)
                names[key] = path and AnnotatedImage(path, region.where, of_image)
            if names[key] is not None and region.shape is not None:
                regions.append(region)
    attribute = _class_attribute(regions)
    nameless = options.classes[0] if options.classes and len(options.classes) == 1 else NAMELESS
    if regions and attribute is None:
        problems.add("regions without attributes", f"{relative(place, files.root)}: all are of the class {nameless}")
    for region in regions:
        labels = [nameless] if attribute is None else _labels(region.attributes, attribute)
        corners = _corners(region.shape)
        if not labels:
            problems.add("object without a class", f"{region.where}: left out")
        elif corners is None:
            kind = str(region.shape.get("name"))[:30] if isinstance(region.shape, dict) else "no shape"
            problems.add("object without a box", f"{region.where} ({labels[0]}): {kind}: left out")
        else:
            boxes = names[region.file, region.image].boxes
            boxes += [LabelledBox(label, corners, f"{region.where} ({label})") for label in labels]
    return assemble(filter(None, names.values()), files, problems, options)


def _is_via(path: Path) -> bool:
    if path.suffix.lower() == ".csv":
        return "region_shape_attributes" in csv_header(path)
    text = beginning(path)
    return '"_via_img_metadata"' in text or ('"regions"' in text and '"filename"' in text)


def _of_json(file: Path, files: DatasetFiles, problems: Problems) -> Iterator[_Region]:
    """The regions of a file, and for each image one without a shape."""
    where = relative(file, files.root)
    try:
        content = read_json(file, where, problems)
    except (OSError, ValueError) as error:
        raise ValueError(f"annotation file {file}: {error}") from error
    images = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(images, dict):
        raise ValueError(f"annotation file {file}: it has no images by name")
    for key, image in images.items():
        at = f"{where}, {key}"
        if not isinstance(image, dict) or not isinstance(image.get("filename"), str) or not image["filename"]:
            problems.add("image without a name", f"{at}: left out")
            continue
        yield _Region(image["filename"], file, at, None, None)
        if "regions" not in image:
            problems.add("image without a list of regions", f"{at}: counts as background")
        regions = image.get("regions") or []
        for number, region in enumerate(regions.values() if isinstance(regions, dict) else regions):  # VIA 1 has a dict
            region = region if isinstance(region, dict) else {}
            shape = region.get("shape_attributes") or {}
            yield _Region(
                image["filename"], file, f"{at}, regions[{number}]", shape, region.get("region_attributes") or {}
            )


def _of_csv(file: Path, files: DatasetFiles, problems: Problems) -> Iterator[_Region]:
    where = relative(file, files.root)
    for line, row in csv_rows(file, where, problems):
        at, name = f"{where}, line {line}", row.get("filename", "")
        if not name:
            problems.add("image without a name", f"{at}: left out")
            continue
        yield _Region(name, file, at, None, None)
        try:
            shape = json.loads(row["region_shape_attributes"] or "{}")
            attributes = json.loads(row.get("region_attributes") or "{}")
        except (ValueError, RecursionError):
            problems.add("row that is no object", f"{at}: its attributes are not JSON: left out")
            continue
        if shape:
            yield _Region(name, file, at, shape, attributes)


def _class_attribute(regions: Iterable[_Region]) -> str | None:
    """The attribute that holds the class; None if no region has an attribute."""
    counts = Counter(
        key
        for region in regions
        if isinstance(region.attributes, dict)
        for key in region.attributes
        if _labels(region.attributes, key)
    )
    if len(counts) < 2:
        return next(iter(counts), None)
    named = {key.strip().lower().replace(" ", "_"): key for key in counts}
    for name in CLASS_ATTRIBUTES:
        if name in named:
            return named[name]
    raise ValueError(
        f"the regions have the attributes {', '.join(sorted(counts)[:5])}, and none of them is called "
        f"{', '.join(CLASS_ATTRIBUTES[:6])}: rename the one that holds the class"
    )


def _labels(attributes: Any, key: str) -> list[str]:
    """The classes in an attribute: its text, or its ticked options."""
    value = attributes.get(key) if isinstance(attributes, dict) else None
    if isinstance(value, dict):
        return [label for name, ticked in value.items() if ticked and (label := one_line(name))]
    if isinstance(value, str) or is_number(value):
        return [label] if (label := one_line(str(value))) else []
    return []


def _corners(shape: Any) -> Corners | None:
    if not isinstance(shape, dict):
        return None

    def numbers(*names: str) -> Sequence[float] | None:
        values = [shape.get(name) for name in names]
        return values if all(map(is_number, values)) else None

    kind = shape.get("name")
    if kind == "rect" and (rect := numbers("x", "y", "width", "height")):
        return rect[0], rect[1], rect[0] + rect[2], rect[1] + rect[3]
    if kind == "circle" and (circle := numbers("cx", "cy", "r")):
        return rotated_ellipse(circle[0], circle[1], circle[2], circle[2], 0)
    if kind == "ellipse" and (ellipse := numbers("cx", "cy", "rx", "ry")):
        return rotated_ellipse(*ellipse, shape["theta"] if is_number(shape.get("theta")) else 0)
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) > 1 and all(map(is_number, [*xs, *ys])) and ys:
            return min(xs), min(ys), max(xs), max(ys)
    return None


VIA = Format("via", "VGG VIA", "JSON or CSV file of VGG Image Annotator", find_via, read_via)
