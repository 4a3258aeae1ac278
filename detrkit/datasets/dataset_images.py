"""Images with their objects, and a list of problems: shared by the readers of all formats."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from .images import UnknownRange, check_values

ORIENTATION = 0x0112  # EXIF tag; values from 5 on exchange width and height
LINES_PER_KIND = 5
ALL = "all"  # the split of a dataset that has none
SAME_SHAPE = 0.01  # relative difference of aspect ratios
Corners = tuple[float, float, float, float]  # left, top, right, bottom


class Problems:
    """Problems of a dataset, by kind. The report shows the first few lines of each kind, and their number."""

    def __init__(self):
        self._lines: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, kind: str, line: str) -> None:
        """Add a problem of a kind such as "box without area"; the line says where, what, and what was done."""
        self._counts[kind] += 1
        if len(self._lines[kind]) < LINES_PER_KIND:
            self._lines[kind].append(_printable(line))

    @property
    def counts(self) -> dict[str, int]:
        return dict(self._counts)

    def report(self) -> list[str]:
        """The lines, at most `LINES_PER_KIND` + 1 of each kind."""
        report = []
        for kind, lines in self._lines.items():
            report += [f"{kind}: {line}" for line in lines]
            if more := self._counts[kind] - len(lines):
                report.append(f"{kind}: {more} more")
        return report


def _printable(line: str, most: int = 300) -> str:
    """A text as one line of printable characters."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(line.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


@dataclass
class Box:
    """An object: class, box in pixels of the upright image, and whether training and evaluation ignore it."""

    label: str
    corners: Corners
    ignored: bool = False


@dataclass
class DatasetImage:
    """A readable image of a dataset, with its objects; width and height are pixels of the upright image."""

    path: Path
    width: int
    height: int
    boxes: list[Box] = field(default_factory=list)


@dataclass
class ImageFile:
    """Properties of an image file, without its annotations.

    Attributes:
        width, height: pixels of the upright image.
        orientation: EXIF's, 1 to 8.
        error: why the file cannot be used; "" if it can.
        kind: kind of the problem.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    error: str = ""
    kind: str = "broken image"

    @property
    def turned(self) -> bool:
        return self.orientation >= 5


def inspect_image(path: Path, decode: bool) -> ImageFile:
    """Read the upright size of an image file; with `decode` also all pixels, to find damaged files."""
    try:
        with Image.open(path) as image:
            if decode:
                check_values(image)
            orientation = image.getexif().get(ORIENTATION, 1)
            orientation = orientation if orientation in range(1, 9) else 1
            size = image.size[::-1] if orientation >= 5 else image.size
        return ImageFile(*size, orientation)
    except FileNotFoundError:
        return ImageFile(error="there is no such image")
    except Image.UnidentifiedImageError:
        return ImageFile(error="not an image")
    except UnknownRange as error:
        return ImageFile(error=str(error), kind="image values of unknown range")
    except Exception as error:  # a damaged file may raise anything
        return ImageFile(error=str(error).partition(": ")[0] or type(error).__name__)


def inspect_images(paths: Iterable[Path], decode: bool) -> dict[Path, ImageFile]:
    """Run `inspect_image` on each path once, in several threads."""
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda path: inspect_image(path, decode), paths)
        return dict(zip(paths, tqdm(found, "images", len(paths), leave=False, disable=None), strict=True))


def turn(box: Corners, width: float, height: float, orientation: int) -> Corners:
    """Map a box of the stored image, with `width` and `height`, to the upright image. For orientations 5 to 8."""
    left, top, right, bottom = box
    if orientation in (6, 7):
        top, bottom = height - bottom, height - top
    if orientation in (7, 8):
        left, right = width - right, width - left
    return top, left, bottom, right


def to_upright(
    file: ImageFile, stated: tuple[float, float] | None, where: str, problems: Problems
) -> Callable[[Corners], Corners]:
    """Return a function that maps boxes of an annotation to the upright image.

    Args:
        stated: width and height of the image in the annotation; None if it has none.
        where: place of the annotation, for the report.
    """
    upright = (file.width, file.height)
    if stated is None:
        problems.add("no image size", f"{where}: the file's, {file.width}x{file.height}, is taken")
        return lambda corners: corners
    width, height = stated
    if stated == upright:
        return lambda corners: corners
    line = f"{where} says {width:g}x{height:g}, the image is {file.width}x{file.height}"
    if file.turned and stated == upright[::-1]:
        problems.add("image annotated before it was turned", f"{line} by its EXIF data: boxes turned with it")
        return lambda corners: turn(corners, width, height, file.orientation)
    if abs(width * file.height / (height * file.width) - 1) < SAME_SHAPE:
        problems.add("other image size", f"{line}: boxes scaled")
        scale = file.width / width, file.height / height
        return lambda corners: tuple(value * scale[i % 2] for i, value in enumerate(corners))
    problems.add("other image size", f"{line}, of another shape: boxes kept unchanged, please check")
    return lambda corners: corners


def add_box(image: DatasetImage, box: Box, where: str, problems: Problems) -> None:
    """Add a box to its image, clipped to the image, unless its area is 0; `where` is for the report."""
    left, top, right, bottom = box.corners
    shown = " ".join(f"{value:g}" for value in box.corners)
    if not all(map(math.isfinite, box.corners)):
        problems.add("box that is no box", f"{where}: {shown}: left out")
        return
    if right <= left or bottom <= top:
        problems.add("box without area", f"{where}: {shown}: left out")
        return
    inside = max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height))
    size = f"the image is {image.width}x{image.height}"
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        problems.add("box outside the image", f"{where}: {shown}, but {size}: left out")
        return
    # Rounding may move a box at the border by a pixel.
    if max(abs(a - b) for a, b in zip(inside, box.corners, strict=True)) > 1:
        problems.add("box partly outside the image", f"{where}: {shown}, but {size}: clipped")
    box = Box(box.label, tuple(round(value, 3) for value in inside), box.ignored)
    if box.corners[2] <= box.corners[0] or box.corners[3] <= box.corners[1]:
        problems.add("box without area", f"{where}: {shown}: left out")
    elif box in image.boxes:
        problems.add("object given twice", f"{where}: {box.label} at {shown}: kept once")
    else:
        image.boxes.append(box)


def relative(path: Path, root: Path) -> str:
    """A path relative to `root`, if it lies below it."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        ValueError: it is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 (byte {error.start})") from error
