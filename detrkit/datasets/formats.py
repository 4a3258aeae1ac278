"""The dataset layouts that can be read, and which one a folder has."""

from __future__ import annotations

from pathlib import Path

from detrkit.runtime.text import plural

from .coco import COCO
from .cvat import CVAT
from .dataset_images import Problems
from .files import DatasetFiles, image_files
from .kitti import KITTI
from .labelme import LABELME
from .open_images import OPEN_IMAGES
from .reading import Format
from .tensorflow_csv import TENSORFLOW_CSV
from .via import VIA
from .voc import VOC
from .yolo import YOLO

FORMATS = {layout.name: layout for layout in (COCO, VOC, YOLO, LABELME, CVAT, VIA, TENSORFLOW_CSV, OPEN_IMAGES, KITTI)}


def recognise(source: Path, problems: Problems, name: str | None = None) -> tuple[Format, DatasetFiles, Path]:
    """The layout of a dataset, by the content of its files.

    If a folder contains only one other folder, that one is used.

    Args:
        source: a folder, or one annotation file.
        problems: gets a line for each annotation file that is not read because it is derived from another.
        name: a name in `FORMATS`, to look for this layout alone.

    Returns:
        The layout, the dataset's files, and the path for its reader.

    Raises:
        ValueError: there is no such layout, or no or several layouts are found.
    """
    if name is not None and name not in FORMATS:
        raise ValueError(f"format={name!r}: choose one of {', '.join(FORMATS)}")
    layouts = [FORMATS[name]] if name else list(FORMATS.values())
    files = DatasetFiles(source)
    while True:
        found = _found(layouts, files)
        inner = _only_folder(files.root)
        if found or source.is_file() or inner is None:
            break
        files = DatasetFiles(inner)
    if original := [(layout, place) for layout, place in found if not layout.is_derived]:
        for layout, place in found:
            if layout.is_derived:
                line = f"{place}: {original[0][0].title} is read instead; --format {layout.name} reads it"
                problems.add(f"{layout.title} beside another layout", line)
        found = original
    if len(found) > 1:
        seen = " and ".join(f"{layout.title} ({place})" for layout, place in found)
        raise ValueError(f"{source} looks like {seen}: say which by format={found[0][0].name}")
    if not found:
        images = 0 if source.is_file() else sum(1 for _ in image_files(source))
        if images:
            raise ValueError(
                f"{source} has {plural(images, 'image')} and no annotations: put files of annotations beside them, in "
                f"one of the layouts {', '.join(layout.title for layout in layouts)}"
            )
        if source.is_dir() and not any(source.iterdir()):
            raise ValueError(f"{source} is empty: give a folder of images and annotations")
        known = "; ".join(f"{layout.title}: {layout.content}" for layout in layouts)
        raise ValueError(f"{source} is in no known layout. {known}")
    layout, place = found[0]
    return layout, files, place


def _found(layouts: list[Format], files: DatasetFiles) -> list[tuple[Format, Path]]:
    """The layouts that a folder has, and the paths for their readers."""
    found = [(layout, place) for layout in layouts if (place := layout.find(files))]
    if not found:
        found = [(layout, place) for layout in layouts if (place := layout.guess(files))]
    return found


def _only_folder(folder: Path) -> Path | None:
    """The single entry of a folder, if it is a folder."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else None
