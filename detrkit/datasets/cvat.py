"""CVAT's own layout, "CVAT for images 1.1" (https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from .dataset_images import ALL, Corners, Problems, relative
from .files import DatasetFiles, split_named, split_of_folders
from .reading import AnnotatedImage, Dataset, Format, LabelledBox, ReadOptions, assemble, one_line
from .values import positive_size, rotated, rotated_ellipse, to_number
from .xml_files import line_of, parse_xml, root_tag

WITHOUT_AREA = ("polyline", "points")


def find_cvat(files: DatasetFiles) -> Path | None:
    """An XML file whose root is `annotations`."""
    return next((path for path in files.sample(".xml") if root_tag(path) == "annotations"), None)


def read_cvat(files: DatasetFiles, place: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read the XML files of CVAT's exports. Splits are the subsets, else the folders.

    The box of a shape, which may be rotated, encloses it. Points, lines and tags have no box. An image without shapes
    is background.

    Raises:
        ValueError: a file is broken, or holds tracks of a video.
    """
    images: list[AnnotatedImage] = []
    for file in files.annotation_files(".xml"):
        if root_tag(file) == "annotations":
            images += _images(file, files, problems)
    return assemble(images, files, problems, options)


def _images(file: Path, files: DatasetFiles, problems: Problems) -> Iterator[AnnotatedImage]:
    where = relative(file, files.root)
    try:
        root = parse_xml(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"annotation file {file}: {error}") from error
    if root.find("track") is not None:
        raise ValueError(
            f"annotation file {file}, line {line_of(root.find('track'))}: it holds tracks of a video: export the task "
            'as "CVAT for images 1.1", with its images'
        )
    for image in root.iter("image"):
        at, name = f"{where}, line {line_of(image)}", image.get("name") or ""
        subset = image.get("subset") or ""
        if not name:
            problems.add("image without a name", f"{at}: left out")
            continue
        path = files.locate(f"{subset}/{name}", file.parent, at, Problems()) if subset else None
        path = path or files.locate(name, file.parent, at, problems)
        if path is None:
            continue
        split = split_named(subset) or split_of_folders(file, files.root)
        yield AnnotatedImage(
            path,
            at,
            split if split != ALL else split_of_folders(path, files.root),
            list(_boxes(image, where, problems)),
            positive_size(image.get("width"), image.get("height")),
        )


def _boxes(image: Element, where: str, problems: Problems) -> Iterator[LabelledBox]:
    for shape in image:
        label, at = one_line(shape.get("label")), f"{where}, line {line_of(shape)}"
        if not label:
            problems.add("object without a class", f"{at}: left out")
            continue
        if shape.tag == "tag":
            problems.add("tag of an image", f"{at} ({label}): left out")
            continue
        corners = None if shape.tag in WITHOUT_AREA else _corners(shape)
        if corners is None:
            problems.add("object without a box", f"{at} ({label}): {shape.tag}: left out")
        else:
            yield LabelledBox(label, corners, f"{at} ({label})")


def _corners(shape: Element) -> Corners | None:
    def numbers(*names: str) -> list[float] | None:
        values = [to_number(shape.get(name)) for name in names]
        return None if None in values else values

    degrees = to_number(shape.get("rotation")) or 0.0
    if shape.tag == "box":
        corners = numbers("xtl", "ytl", "xbr", "ybr")
        return corners and (rotated(*corners, degrees) if degrees else tuple(corners))
    if shape.tag == "ellipse":
        ellipse = numbers("cx", "cy", "rx", "ry")
        return ellipse and rotated_ellipse(*ellipse, degrees)
    if shape.tag == "mask":
        place = numbers("left", "top", "width", "height")
        return place and (place[0], place[1], place[0] + place[2], place[1] + place[3])
    if shape.tag == "cuboid":
        xs = numbers(*(name for name in shape.keys() if name.startswith("x")))
        ys = numbers(*(name for name in shape.keys() if name.startswith("y")))
        return (min(xs), min(ys), max(xs), max(ys)) if xs and ys else None
    if shape.tag == "skeleton":
        return _enclosing([point for part in shape for point in _points(part)])
    return _enclosing(_points(shape))


def _points(shape: Element) -> list[tuple[float, float]]:
    """The points of a shape, "x,y;x,y;…"; empty if they are no numbers."""
    pairs = [[to_number(value) for value in point.split(",")] for point in (shape.get("points") or "").split(";")]
    return [tuple(pair) for pair in pairs] if all(len(p) == 2 and None not in p for p in pairs) else []


def _enclosing(points: list[tuple[float, float]]) -> Corners | None:
    if len(points) < 2:
        return None
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


CVAT = Format("cvat", "CVAT XML", "XML file of CVAT for images", find_cvat, read_cvat)
