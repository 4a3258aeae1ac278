"""Types and functions that the readers of all dataset layouts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .dataset_images import Box, Corners, DatasetImage, Problems, add_box, inspect_images, relative, to_upright
from .files import NOT_PHOTOGRAPHS, DatasetFiles


@dataclass(frozen=True)
class ReadOptions:
    """How to read a dataset.

    Attributes:
        classes: replace the class names of a dataset whose layout has only numbers, or no class names.
        difficult, zero_based: of Pascal VOC, see `read_voc`.
        decode: decode all pixels, as training does; otherwise read only the size.
    """

    classes: Sequence[str] | None = None
    difficult: str = "ignore"
    zero_based: bool = False
    decode: bool = True


@dataclass
class Dataset:
    """A dataset.

    Attributes:
        splits: the images by split; the split is "all" if the dataset has none.
        image_root: the folder that file names are relative to.
        classes: class names, in the order of their ids.
    """

    splits: dict[str, list[DatasetImage]]
    image_root: Path
    classes: list[str]


@dataclass(frozen=True)
class Format:
    """A layout of datasets.

    Attributes:
        name: for `--format`.
        title: in messages.
        content: what the layout consists of, in messages.
        find: return the file or folder whose content identifies the layout; None for another layout.
        read: read the dataset; takes the path that `find` returned.
        guess: like `find`, by weaker signs; used if `find` of all layouts returns None.
        is_derived: whether it is usually derived from another layout; if both are there, the other one is read.
    """

    name: str
    title: str
    content: str
    find: Callable[[DatasetFiles], Path | None]
    read: Callable[[DatasetFiles, Path, Problems, ReadOptions], Dataset]
    guess: Callable[[DatasetFiles], Path | None] = lambda files: None
    is_derived: bool = False


@dataclass
class LabelledBox:
    """An object of an annotation file; `where` is its place in the file, for the report."""

    label: str
    corners: Corners
    where: str
    ignored: bool = False


@dataclass
class AnnotatedImage:
    """An image of an annotation file.

    Attributes:
        path: the image's file.
        where: the place in the annotation file, for the report.
        split: "train", "val", "trainval", "test" or "all".
        boxes: the objects.
        size: width and height as the annotation file states them, in pixels; None if it does not.
        is_relative: whether boxes are parts of the width and height, instead of pixels.
    """

    path: Path
    where: str
    split: str
    boxes: list[LabelledBox] = field(default_factory=list)
    size: tuple[float, float] | None = None
    is_relative: bool = False


def assemble(
    annotated: Iterable[AnnotatedImage], files: DatasetFiles, problems: Problems, options: ReadOptions
) -> Dataset:
    """Read the image files, and add the boxes to them; what cannot be used is reported and left out.

    Several entries of one image and split are joined. Classes are those that occur, by name.
    """
    annotated = list(annotated)
    image_files = inspect_images((image.path for image in annotated), options.decode)
    for path, file in image_files.items():
        if file.error:
            problems.add(file.kind, f"{relative(path, files.root)}: {file.error}: left out")
    splits: dict[str, dict[Path, DatasetImage]] = {}
    for image in annotated:
        file = image_files[image.path]
        of_split = splits.setdefault(image.split, {})
        if file.error:
            continue
        target = of_split.setdefault(image.path, DatasetImage(image.path, file.width, file.height))
        scale = (file.width, file.height) if image.is_relative else (1, 1)
        to_image = to_upright(file, image.size or (file.width, file.height), image.where, problems)
        for box in image.boxes:
            corners = to_image(tuple(value * scale[i % 2] for i, value in enumerate(box.corners)))
            add_box(target, Box(box.label, corners, box.ignored), box.where, problems)
    report_unannotated(files, {image.path for image in annotated}, problems)
    parts = {split: list(images.values()) for split, images in splits.items()}
    classes = sorted({box.label for part in parts.values() for image in part for box in image.boxes})
    return Dataset(parts, files.root, classes)


def report_unannotated(files: DatasetFiles, annotated: set[Path], problems: Problems) -> None:
    """Report images without annotations, except masks and images with the name of an annotated one."""
    stems = {path.stem for path in annotated}
    for path in files.images:
        if path.stem not in stems and not NOT_PHOTOGRAPHS.search(path.parent.name):
            problems.add("image without annotation", f"{relative(path, files.root)}: left out")


def one_line(text: str | None) -> str:
    """A class name with single spaces; "" for None."""
    return " ".join((text or "").split())
