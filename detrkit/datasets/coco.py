"""COCO's format as datasets have it (https://cocodataset.org/#format-data): one JSON file per split, and images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .annotations import is_box, is_id, is_number
from .pictures import ALL, Box, Corners, Picture, Problems, add_box, look_at_all, relative, to_upright

SPLITS = {"trainval": "trainval", "train": "train", "valid": "val", "val": "val", "test": "test"}
LISTS = ("images", "annotations", "categories")
BEGINNING = 1 << 16  # bytes in which a file of this format has named one of its lists
OFFICIAL = "instances_"  # beside captions_train2017.json and person_keypoints_train2017.json
SEEN = 50  # images that tell which folder a file means


def find_coco(folder: Path) -> Path | None:
    """The folder, or the file itself, if there are annotation files of COCO's format; None if there are none."""
    return folder if annotation_files(folder) else None


def annotation_files(folder: Path) -> list[Path]:
    """Files that look like COCO's annotations, in the folder and those in it. Where there are `instances_*.json`, the
    others are captions and keypoints of the same images."""
    if folder.is_file():
        return [folder] if folder.suffix == ".json" and _looks_right(folder) else []
    found = [path for pattern in ("*.json", "*/*.json") for path in sorted(folder.glob(pattern)) if _looks_right(path)]
    return [path for path in found if path.name.startswith(OFFICIAL)] or found


def read_coco(
    source: Path, problems: Problems, *, decode: bool = True
) -> tuple[dict[str, list[Picture]], Path, list[str]]:
    """Reads a folder with annotations in COCO's format; crowds are boxes to ignore.

    A file is of the split that it or its folder is named after: train, trainval, val or valid, test; else of "all".
    Images lie beside it, or in a folder of the split's or the file's name, or in `images`.

    Args:
        source: what `find_coco` gave.
        decode: see `look_at`.

    Returns:
        Pictures by split, the dataset's folder, and the names of classes that have objects, by their ids.

    Raises:
        ValueError: several files are of the same split, or a file is not of this format, or its images are nowhere.
    """
    root = source.parent if source.is_file() else source
    files: dict[str, Path] = {}
    for path in annotation_files(source):
        split = _split_of(path, root)
        if split in files:
            both = f"{relative(files[split], root)} and {relative(path, root)}"
            raise ValueError(f"{root}: {both} are both of the split {split}: give one of them as the dataset")
        files[split] = path
    contents = {split: _load(path) for split, path in files.items()}
    places = {split: _image_paths(contents[split], files[split], split, root, problems) for split in files}
    looked = look_at_all((path for paths in places.values() for path, _ in paths.values()), decode)
    names: dict[str, None] = {}  # the ids of two files may differ
    pictures = {}
    for split, content in contents.items():
        where = relative(files[split], root)
        labels = _labels(content["categories"], where, problems)
        names.update(dict.fromkeys(labels[number] for number in sorted(labels)))
        found = {}
        for image_id, (path, entry) in places[split].items():
            if looked[path].error:
                problems.add("broken image", f"{relative(path, root)}: {looked[path].error}: left out")
                continue
            picture = Picture(path, looked[path].width, looked[path].height)
            annotated = entry.get("width"), entry.get("height")
            stated = annotated if all(is_number(side) and side > 0 for side in annotated) else None
            found[image_id] = picture, to_upright(looked[path], stated, f"{where}, {path.name}", problems)
        _add_objects(content, found, labels, where, problems)
        pictures[split] = [picture for picture, _ in found.values()]
    used = {box.label for split in pictures.values() for picture in split for box in picture.boxes}
    for name in names:
        if name not in used:
            problems.add("class without objects", f"{name}: left out")
    return pictures, root, [name for name in names if name in used]


def _looks_right(path: Path) -> bool:
    with path.open("rb") as file:
        beginning = file.read(BEGINNING)
    return beginning.lstrip().startswith(b"{") and any(f'"{key}"'.encode() in beginning for key in LISTS)


def _split_of(path: Path, root: Path) -> str:
    """By the file's name, or by its folder's below the dataset's."""
    for name in (path.stem, path.parent.name if path.parent != root else ""):
        # "train2017" and "_train.coco", but not "trained".
        for word, split in SPLITS.items():
            if re.search(rf"(?<![a-z]){word}(?:idation)?(?![a-z])", name.lower()):
                return split
    return ALL


def _load(path: Path) -> dict[str, list]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"annotation file {path} cannot be read: {error}") from error
    for key in LISTS:
        if not isinstance(content.get(key), list):
            raise ValueError(f"annotation file {path}: it has no list of {key}")
    return content


def _entries(entries: list, kind: str, where: str, problems: Problems) -> Iterator[dict[str, Any]]:
    """Those with an id of their own."""
    ids = set()
    for number, entry in enumerate(entries):
        at = f"{where}, {kind}[{number}]"
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            problems.add("entry without an id", f"{at}: left out")
        elif entry["id"] in ids:
            problems.add("id given twice", f"{at} has id {entry['id']}, as one before it: left out")
        else:
            ids.add(entry["id"])
            yield entry


def _image_paths(
    content: dict[str, list], file: Path, split: str, root: Path, problems: Problems
) -> dict[int, tuple[Path, dict[str, Any]]]:
    """Images by id: the file, and what the annotations say of it."""
    where = relative(file, root)
    entries = {}
    for entry in _entries(content["images"], "images", where, problems):
        name = entry.get("file_name")
        if isinstance(name, str) and name and "\0" not in name:
            entries[entry["id"]] = entry
        else:
            problems.add("image without a name", f"{where}, image {entry['id']}: left out")
    if not entries:
        return {}
    names = [entry["file_name"] for entry in entries.values()]
    stem = file.stem.removeprefix(OFFICIAL)
    below = ["", "images", split, stem, f"images/{split}", f"images/{stem}", "JPEGImages", "valid", "images/valid"]
    folders = dict.fromkeys([file.parent, file.parent / "images", *(root / name for name in below)])
    hits = Counter({folder: sum(_is_file(folder / name) for name in names[:SEEN]) for folder in folders})
    folder, most = hits.most_common(1)[0]
    if not most:
        tried = ", ".join(str(folder) for folder in folders if folder.is_dir())
        raise ValueError(f"{file}: its images, such as {names[0]}, are in none of {tried}")
    paths: dict[int, tuple[Path, dict[str, Any]]] = {}
    owners: dict[Path, int] = {}
    for image_id, entry in entries.items():
        path = folder / entry["file_name"]
        if not _is_file(path):
            problems.add("missing image", f"{where}: there is no {relative(path, root)}: left out")
        elif path in owners:
            line = f"{where}: {relative(path, root)} is image {owners[path]} and {image_id}: the first is kept"
            problems.add("image given twice", line)
        else:
            paths[image_id], owners[path] = (path, entry), image_id
    return paths


def _labels(categories: list, where: str, problems: Problems) -> dict[int, str]:
    labels: dict[int, str] = {}
    for entry in _entries(categories, "categories", where, problems):
        name = " ".join(entry["name"].split()) if isinstance(entry.get("name"), str) else ""
        if not name:
            problems.add("class without a name", f"{where}, category {entry['id']}: left out")
            continue
        if name in labels.values():
            problems.add("class named twice", f"{where}: {name} is also category {entry['id']}: taken as one")
        labels[entry["id"]] = name
    return labels


def _add_objects(
    content: dict[str, list],
    pictures: dict[int, tuple[Picture, Callable[[Corners], Corners]]],
    labels: dict[int, str],
    where: str,
    problems: Problems,
) -> None:
    listed = {entry["id"] for entry in content["images"] if isinstance(entry, dict) and is_id(entry.get("id"))}
    for number, entry in enumerate(content["annotations"]):
        at = f"{where}, annotations[{number}]"
        if not isinstance(entry, dict):
            problems.add("entry that is no object", f"{at}: left out")
            continue
        image_id, category = entry.get("image_id"), entry.get("category_id")
        if not (is_id(image_id) and image_id in pictures):
            if not (is_id(image_id) and image_id in listed):  # what became of the others was told with the image
                problems.add("object of no image", f"{at}: image {str(image_id)[:50]}: left out")
            continue
        picture, to_image = pictures[image_id]
        if not (is_id(category) and category in labels):
            problems.add("unknown class", f"{at}: category {str(category)[:50]}: left out")
            continue
        box = entry.get("bbox")
        if not is_box(box):
            problems.add("object without a box", f"{at}: bbox is not x, y, width and height: left out")
            continue
        left, top, width, height = map(float, box)
        if width <= 0 or height <= 0:
            shown = " ".join(f"{value:g}" for value in box)
            problems.add("box without area", f"{at}: x, y, width, height {shown}: left out")
            continue
        corners = to_image((left, top, left + width, top + height))
        add_box(picture, Box(labels[category], corners, bool(entry.get("iscrowd"))), at, problems)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
