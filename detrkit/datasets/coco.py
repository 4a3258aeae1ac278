"""Datasets in COCO's format (https://cocodataset.org/#format-data): one JSON file per split, and images."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .annotation_values import box_of_segmentation, is_number
from .dataset_images import Box, Corners, DatasetImage, Problems, add_box, inspect_images, relative, to_upright
from .files import DatasetFiles, beginning, is_file, split_named, split_of_folders
from .reading import Dataset, Format, ReadOptions
from .values import to_number

LISTS = ("images", "annotations", "categories")
OFFICIAL = "instances_"  # beside captions_train2017.json and person_keypoints_train2017.json
SEEN = 50  # images that tell which folder a file means
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")
Key = int | str  # an id: 1, "1" and 1.0 are the same


def find_coco(files: DatasetFiles) -> Path | None:
    """The folder, or the file itself, with annotation files in COCO's format; None without any."""
    return files.source if annotation_files(files) else None


def annotation_files(files: DatasetFiles) -> list[Path]:
    """Files that look like COCO's annotations, in the folder and its subfolders.

    If there are `instances_*.json`, the others are captions and keypoints of the same images, and are left out.
    """
    near = [path for path in files.annotation_files(".json") if len(path.relative_to(files.root).parts) <= 2]
    if files.source.is_file():
        near = files.annotation_files(".json")
    found = [path for path in near if _looks_right(path)]
    return [path for path in found if path.name.startswith(OFFICIAL)] or found


def read_coco(files: DatasetFiles, source: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read annotation files of COCO's format; crowds are boxes to ignore.

    A file is of the split that it or its folder is named after: train, trainval, val or valid, test; else of "all".
    Images lie beside it, or in a folder of the split's or the file's name, or in `images`, or anywhere in the dataset.
    Several entries of one image are joined. An object without a box has the box of its polygons or mask.

    Raises:
        ValueError: several files are of the same split, or a file is not of this format, or its images are nowhere.
    """
    root = files.root
    by_split: dict[str, Path] = {}
    for path in annotation_files(files):
        split = split_named(path.stem) or split_of_folders(path, root)
        if split in by_split:
            both = f"{relative(by_split[split], root)} and {relative(path, root)}"
            raise ValueError(f"{root}: {both} are both of the split {split}: give one of them as the dataset")
        by_split[split] = path
    contents = {split: _load(path) for split, path in by_split.items()}
    places = {split: _image_paths(contents[split], by_split[split], split, files, problems) for split in by_split}
    image_files = inspect_images((path for paths in places.values() for path, _ in paths.values()), options.decode)
    for path, file in image_files.items():
        if file.error:
            problems.add(file.kind, f"{relative(path, root)}: {file.error}: left out")
    names: dict[str, None] = {}  # the ids of two files may differ
    parts = {}
    for split, content in contents.items():
        where = relative(by_split[split], root)
        labels = _labels(content["categories"], where, problems)
        names.update(dict.fromkeys(labels[number] for number in sorted(labels, key=_in_order)))
        images: dict[Path, DatasetImage] = {}
        found = {}
        for image_id, (path, entry) in places[split].items():
            if image_files[path].error:
                continue
            image = images.setdefault(path, DatasetImage(path, image_files[path].width, image_files[path].height))
            annotated = entry.get("width"), entry.get("height")
            stated = annotated if all(is_number(side) and side > 0 for side in annotated) else None
            found[image_id] = image, to_upright(image_files[path], stated, f"{where}, {path.name}", problems)
        _add_objects(content, found, labels, where, problems)
        parts[split] = list(images.values())
    used = {box.label for part in parts.values() for image in part for box in image.boxes}
    for name in names:
        if name not in used:
            problems.add("class without objects", f"{name}: left out")
    return Dataset(parts, root, [name for name in names if name in used])


def _looks_right(path: Path) -> bool:
    text = beginning(path)
    return text.lstrip("\ufeff \t\r\n").startswith("{") and any(f'"{key}"' in text for key in LISTS)


def _load(path: Path) -> dict[str, list]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"annotation file {path} cannot be read: {error}") from error
    for key in LISTS:
        if not isinstance(content.get(key), list):
            raise ValueError(f"annotation file {path}: it has no list of {key}")
    return content


def id_key(value: Any) -> Key | None:
    """An id as a key: a whole number, also from a float or text, else the text; None for other values."""
    if isinstance(value, str):
        text = value.strip()
        return int(text.partition(".")[0]) if NUMBER.fullmatch(text) else text or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) else int(value) if value.is_integer() else None


def _in_order(key: Key) -> tuple[bool, Key]:
    """Sort key: numbers before texts."""
    return isinstance(key, str), key


def _entries(entries: list, kind: str, where: str, problems: Problems) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Entries with a unique id, and the id."""
    ids = set()
    for number, entry in enumerate(entries):
        at = f"{where}, {kind}[{number}]"
        key = id_key(entry.get("id")) if isinstance(entry, dict) else None
        if key is None:
            problems.add("entry without an id", f"{at}: left out")
        elif key in ids:
            problems.add("id given twice", f"{at} has id {key}, as one before it: left out")
        else:
            ids.add(key)
            yield key, entry


def _image_paths(
    content: dict[str, list], file: Path, split: str, files: DatasetFiles, problems: Problems
) -> dict[Key, tuple[Path, dict[str, Any]]]:
    """Images by id: the file, and its entry in the annotations."""
    where = relative(file, files.root)
    entries = {}
    for key, entry in _entries(content["images"], "images", where, problems):
        name = entry.get("file_name")
        if isinstance(name, str) and name and "\0" not in name:
            entries[key] = entry
        else:
            problems.add("image without a name", f"{where}, image {key}: left out")
    if not entries:
        return {}
    folder = _image_folder([entry["file_name"] for entry in entries.values()], file, split, files)
    paths: dict[Key, tuple[Path, dict[str, Any]]] = {}
    owners: dict[Path, Key] = {}
    for key, entry in entries.items():
        path = folder and _existing(folder, entry["file_name"])
        if path is None:
            path = files.locate(entry["file_name"], file.parent, where, problems)
        if path is None:
            continue
        if path in owners:
            line = f"{where}: {relative(path, files.root)} is image {owners[path]} and {key}: objects joined"
            problems.add("image given twice", line)
        owners.setdefault(path, key)
        paths[key] = path, entry
    if not paths:
        first = next(iter(entries.values()))["file_name"]
        raise ValueError(f"{file}: its images, such as {first}, are not in {files.root}")
    return paths


def _image_folder(names: list[str], file: Path, split: str, files: DatasetFiles) -> Path | None:
    """The usual folder with the most images; None if no usual folder has any."""
    stem = file.stem.removeprefix(OFFICIAL)
    below = ["", "images", split, stem, f"images/{split}", f"images/{stem}", "JPEGImages", "valid", "images/valid"]
    folders = dict.fromkeys([file.parent, file.parent / "images", *(files.root / name for name in below)])
    hits = Counter({folder: sum(_existing(folder, name) is not None for name in names[:SEEN]) for folder in folders})
    folder, most = hits.most_common(1)[0]
    return folder if most else None


def _existing(folder: Path, name: str) -> Path | None:
    """The file of a name in a folder; backslashes count as slashes, if there is no file with them."""
    for spelling in dict.fromkeys([name, name.replace("\\", "/")]):
        if is_file(path := folder / spelling):
            return Path(os.path.normpath(path))
    return None


def _labels(categories: list, where: str, problems: Problems) -> dict[Key, str]:
    labels: dict[Key, str] = {}
    for key, entry in _entries(categories, "categories", where, problems):
        name = " ".join(entry["name"].split()) if isinstance(entry.get("name"), str) else ""
        if not name:
            problems.add("class without a name", f"{where}, category {key}: left out")
            continue
        if name in labels.values():
            problems.add("class named twice", f"{where}: {name} is also category {key}: taken as one")
        labels[key] = name
    return labels


def _add_objects(
    content: dict[str, list],
    images: dict[Key, tuple[DatasetImage, Callable[[Corners], Corners]]],
    labels: dict[Key, str],
    where: str,
    problems: Problems,
) -> None:
    listed = {id_key(entry.get("id")) for entry in content["images"] if isinstance(entry, dict)} - {None}
    for number, entry in enumerate(content["annotations"]):
        at = f"{where}, annotations[{number}]"
        if not isinstance(entry, dict):
            problems.add("entry that is no object", f"{at}: left out")
            continue
        image_id, category = id_key(entry.get("image_id")), id_key(entry.get("category_id"))
        if image_id not in images:
            if image_id not in listed:  # problems with other images were reported before
                shown = str(entry.get("image_id"))[:50]
                problems.add("object of no image", f"{at}: image {shown}: left out")
            continue
        image, to_image = images[image_id]
        if category not in labels:
            problems.add("unknown class", f"{at}: category {str(entry.get('category_id'))[:50]}: left out")
            continue
        box = _numbers(entry.get("bbox"))
        if box is None or len(box) != 4 or min(box[2:]) <= 0:
            box = box_of_segmentation(entry.get("segmentation")) or box
        if box is None or len(box) != 4:
            problems.add("object without a box", f"{at}: bbox is not x, y, width and height: left out")
            continue
        left, top, width, height = box
        if width <= 0 or height <= 0:
            shown = " ".join(f"{value:g}" for value in box)
            problems.add("box without area", f"{at}: x, y, width, height {shown}: left out")
            continue
        corners = to_image((left, top, left + width, top + height))
        add_box(image, Box(labels[category], corners, is_crowd(entry.get("iscrowd"))), at, problems)


def is_crowd(value: Any) -> bool:
    """Whether COCO's `iscrowd` is set, also as text."""
    return value not in ("", "0", "false", "False") and bool(value)


def _numbers(values: Any) -> list[float] | None:
    """A list of numbers, which may be texts; None for other values."""
    if not isinstance(values, list):
        return None
    read = [to_number(value) if isinstance(value, str) else value for value in values]
    return [float(value) for value in read] if all(map(is_number, read)) else None


COCO = Format("coco", "COCO", "JSON files with images, annotations and categories", find_coco, read_coco)
