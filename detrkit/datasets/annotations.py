"""Annotation files in COCO's format: correct mistakes that have one possible meaning, and report the first other one.

pycocotools and detectron2 check little. An annotation with id 0 counts as unmatched, ids that occur twice
share a match, and a missing area ends an evaluation. `normalise` returns content on which none of this happens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .annotation_values import (
    LARGEST_ID,
    box_of,
    crowd_of,
    exact_key,
    is_id,
    is_number,
    is_polygon,
    is_segmentation,
    loose_key,
    required_id,
    required_value,
    same_json,
    shortened_repr,
    to_number,
)
from .dataset_images import inspect_image

ORIGINAL_ID = "original_id"  # in a normalised file: the id of this image or category in the file that it was made from
SHOWN = 5  # names in an error message


class UnmatchedClasses(ValueError):
    """An annotation file has objects of classes that a model does not have."""


@contextmanager
def annotations_explained(names: str | Sequence[str]) -> Iterator[None]:
    """If the block fails because of a mistake in an annotation file of these datasets, raise that mistake instead.

    Raises:
        ValueError: an annotation file has a mistake; replaces an error that does not name it.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError):
        raise
    except Exception as error:
        for name in [names] if isinstance(names, str) else names:
            metadata = MetadataCatalog.get(name) if name in DatasetCatalog.list() else None
            json_file = metadata and metadata.get("evaluator_type") != "lvis" and metadata.get("json_file")
            if json_file and (problem := annotation_problem(json_file, metadata.get("image_root"))):
                raise ValueError(problem) from error
        raise


def annotation_problem(json_file: str | Path, image_root: str | Path | None = None) -> str | None:
    """The first mistake in an annotation file that `normalise` cannot correct, in one line; None if there is none."""
    try:
        normalise(read_annotations(json_file), image_root)
    except ValueError as error:
        return str(error) if str(json_file) in str(error) else f"annotation file {json_file}: {error}"
    return None


def read_annotations(json_file: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return json.loads(Path(json_file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"annotation file {json_file} cannot be read: {error}") from error


def normalise(
    content: Any, image_root: str | Path | None = None, classes: Sequence[str] | None = None
) -> tuple[dict[str, Any], Counter[str]]:
    """Correct the content of an annotation file, so that pycocotools and detectron2 read it as intended.

    * Images: entries of the same file are joined. Ids become whole numbers; if one cannot, all are numbered from 1.
      Missing sizes are read from the files; `\\` is tried as `/`.
    * Categories: ids like those of images. With `classes`, ids count from 1 in that order.
    * Annotations: numbered from 1 if an id is missing, below 1, no whole number, or given twice. A missing box is taken
      from the segmentation, a missing area is width × height, a missing `iscrowd` is 0, and `ignore` means crowd.
      Boxes without area and annotations of images that are not listed are left out.

    Entries with a new id keep the old one as `original_id`.

    Args:
        content: as JSON has it; it is not changed. Without `annotations` it lists images to detect objects in.
        image_root: the folder of the images, to look up what the content does not say.
        classes: names of all classes, in the order of a model's outputs.

    Returns:
        The corrected content, and the number of changes of each kind. Without a change it is `content` itself.

    Raises:
        ValueError: the first mistake with more than one meaning.
        UnmatchedClasses: it has objects of a class that `classes` does not have.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a mapping of images, annotations and categories")
    for part in ("images", "categories", "annotations"):
        if not isinstance(content.get(part, [] if part == "annotations" else None), list):
            raise ValueError(f"it has no list of {part}")
    changes: Counter[str] = Counter()
    root = None if image_root is None else Path(image_root)
    images, image_id_of, joined = _images(content["images"], root, changes)
    categories, category_id_of = _categories(content["categories"], classes, changes)
    result = {**content, "images": images, "categories": categories}
    if "annotations" in content:
        annotations = _annotations(content["annotations"], image_id_of, category_id_of, joined, changes)
        result["annotations"] = annotations
        if strange := sorted({entry["category_id"] for entry in annotations if isinstance(entry["category_id"], str)}):
            what = f"class {strange[0]}" if len(strange) == 1 else f"classes {shortened(strange)}"
            raise UnmatchedClasses(f"it has objects of the {what}, but the model's are {shortened(classes or ())}")
    return (result if changes else content), changes


def original_ids(content: Mapping[str, Any], part: str) -> dict[int, Any] | None:
    """Map ids of `part`, "images" or "categories", in a normalised file to those in the original file.

    Entries that the original file lacks are not in the result. None if all ids are the original ones.
    """
    entries = content[part]
    if not any(ORIGINAL_ID in entry for entry in entries):
        return None
    originals = {entry["id"]: entry.get(ORIGINAL_ID, entry["id"]) for entry in entries}
    return {id_: original for id_, original in originals.items() if original is not None}


def shortened(names: Sequence[str]) -> str:
    """The first few names, for an error message."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _images(
    entries: list, root: Path | None, changes: Counter[str]
) -> tuple[list[dict[str, Any]], Callable[[Any], int | None], set[int]]:
    """Images; a function from an annotation's `image_id` to the id; and the ids of which there were several entries."""
    key_of = _keys(entries, "images")
    images: list[dict[str, Any]] = []
    first_keys: list[int | str] = []
    by_name: dict[str, int] = {}
    by_key: dict[int | str, int] = {}
    joined: set[int] = set()
    for number, entry in enumerate(entries):
        at = f"images[{number}]"
        name = required_value(entry, "file_name", at)
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"{at} has file_name {shortened_repr(name)}, not a file's name")
        place = by_name.setdefault(name, len(images))
        key = key_of(entry["id"])
        if by_key.setdefault(key, place) != place:
            raise ValueError(f"{at} has id {shortened_repr(entry['id'])}, as an entry before it")
        if place < len(images):
            changes["image entries joined with another entry of the same file"] += 1
            joined.add(place)
        else:
            images.append(_with_size(_with_slashes(entry, root, changes), at, root, changes))
            first_keys.append(key)
    ids = _numbered(first_keys, "image ids", images, changes)

    def id_of(value: Any) -> int | None:
        place = by_key.get(key_of(value))
        return None if place is None else ids[place]

    return images, id_of, {ids[place] for place in joined}


def _categories(
    entries: list, classes: Sequence[str] | None, changes: Counter[str]
) -> tuple[list[dict[str, Any]], Callable[[Any], int | str | None]]:
    """Categories, and a function from an annotation's `category_id` to the id, or to the name if `classes` lacks it."""
    key_of = _keys(entries, "categories")
    categories: list[dict[str, Any]] = []
    keys: dict[int | str, None] = {}
    for number, entry in enumerate(entries):
        at = f"categories[{number}]"
        name = required_value(entry, "name", at)
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise ValueError(f"{at} has name {shortened_repr(name)}, not a text")
        if key_of(entry["id"]) in keys:
            raise ValueError(f"{at} has id {shortened_repr(entry['id'])}, as an entry before it")
        if not isinstance(name, str):
            changes["names of classes that are numbers"] += 1
        keys[key_of(entry["id"])] = None
        categories.append({**entry, "name": str(name)})
    new_ids: list[int | str] = list(_numbered(list(keys), "category ids", categories, changes))
    in_order = sorted(categories, key=lambda category: category["id"])
    if classes is not None and not same_classes([category["name"] for category in in_order], classes):
        changes["classes numbered in the order of the model's outputs"] += 1
        categories, new_ids = _in_order_of(classes, categories)
    by_key = dict(zip(keys, new_ids, strict=True))
    return categories, lambda value: by_key.get(key_of(value))


def _in_order_of(
    classes: Sequence[str], categories: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[int | str]]:
    """A category for each of `classes`, with ids from 1; and for each category given its id there, or its name."""
    outputs = {class_key(name): number for number, name in enumerate(classes, 1)}
    if len(outputs) < len(classes):
        twice = next(name for name, count in Counter(map(class_key, classes)).items() if count > 1)
        raise ValueError(f"the model has two classes named {twice}, which cannot be told apart by their names")
    ordered = [{"id": number, "name": name, ORIGINAL_ID: None} for number, name in enumerate(classes, 1)]
    new_ids: list[int | str] = []
    for category in categories:
        number = outputs.get(class_key(category["name"]))
        new_ids.append(category["name"] if number is None else number)
        if number is not None:
            own = {"id": number, "name": classes[number - 1], ORIGINAL_ID: category.get(ORIGINAL_ID, category["id"])}
            ordered[number - 1] = {**category, **own}
    return ordered, new_ids


def _annotations(
    entries: list,
    image_id_of: Callable[[Any], int | None],
    category_id_of: Callable[[Any], int | str | None],
    joined: set[int],
    changes: Counter[str],
) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    in_joined: set[tuple] = set()
    for number, entry in enumerate(entries):
        at = f"annotations[{number}]"
        image_id = image_id_of(required_id(entry, "image_id", at))
        category_id = category_id_of(required_id(entry, "category_id", at))
        if category_id is None:
            unknown = shortened_repr(entry["category_id"])
            raise ValueError(f"{at} has category_id {unknown}, which its categories do not list")
        if image_id is None:
            changes["annotations of images that are not listed left out"] += 1
            continue
        box, segmentation, crowd = box_of(entry, at), entry.get("segmentation"), crowd_of(entry, at)
        if box is None:
            changes["boxes without area left out"] += 1
            continue
        fixed: dict[str, Any] = {"image_id": image_id, "category_id": category_id, "bbox": box, "iscrowd": crowd}
        if not (is_number(entry.get("area")) and entry["area"] > 0):
            fixed["area"] = box[2] * box[3]
        if not is_segmentation(segmentation):
            fixed["segmentation"] = [segmentation] if is_polygon(segmentation) else []
        if image_id in joined:
            same = (image_id, category_id, crowd, *box)
            if same in in_joined:
                changes["objects given twice left out"] += 1
                continue
            in_joined.add(same)
        if different := [key for key, value in fixed.items() if not same_json(entry.get(key), value)]:
            changes.update(f"annotations with a new {key}" for key in different)
            entry = {**entry, **{key: fixed[key] for key in different}}
        if "ignore" in entry and entry["ignore"] != 0:  # which detectron2 refuses
            changes["ignore read as iscrowd"] += 1
            entry = {key: value for key, value in entry.items() if key != "ignore"}
        annotations.append(entry)
    ids = [entry.get("id") for entry in annotations]
    if not all(type(id_) is int and 0 < id_ < LARGEST_ID for id_ in ids) or len(set(ids)) < len(ids):
        changes["annotation ids numbered anew"] += len(ids)
        annotations = [{**entry, "id": number} for number, entry in enumerate(annotations, 1)]
    return annotations


def class_key(name: str) -> str:
    """A class name with single spaces, to compare names."""
    return " ".join(name.split())


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both are the same classes in the same order."""
    return list(map(class_key, names)) == list(map(class_key, others))


def _keys(entries: list, part: str) -> Callable[[int | float | str], int | str]:
    """A function that makes forms of one id equal (1, 1.0, "1", "0001"), unless two entries would become one."""
    ids = [required_id(entry, "id", f"{part}[{number}]") for number, entry in enumerate(entries)]
    return loose_key if len({*map(loose_key, ids)}) == len({*map(exact_key, ids)}) else exact_key


def _numbered(keys: list[int | str], what: str, entries: list[dict[str, Any]], changes: Counter[str]) -> list[int]:
    """Give the entries whole numbers as ids: those of their keys, or if not all keys are numbers, 1, 2, …"""
    usable = all(map(is_id, keys))
    ids = list(keys) if usable else list(range(1, len(keys) + 1))
    for place, (entry, id_) in enumerate(zip(entries, ids, strict=True)):
        if not same_json(entry["id"], id_):
            changes[f"{what} as whole numbers"] += 1
            entries[place] = {**entry, "id": id_, ORIGINAL_ID: entry["id"]}
    return ids


def _with_slashes(entry: dict[str, Any], root: Path | None, changes: Counter[str]) -> dict[str, Any]:
    name = entry["file_name"]
    other = name.replace("\\", "/")
    if name == other or root is None or _is_file(root / name) or not _is_file(root / other):
        return entry
    changes["file names with \\ for /"] += 1
    return {**entry, "file_name": other}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _with_size(entry: dict[str, Any], at: str, root: Path | None, changes: Counter[str]) -> dict[str, Any]:
    """The entry with whole numbers as `width` and `height`, from the image file where it has none."""
    stated = [entry.get("width"), entry.get("height")]
    size = [to_number(side) for side in stated]
    if all(side is not None and side >= 1 and side == int(side) for side in size):
        size = list(map(int, size))
    else:
        for key in ("width", "height"):
            if entry.get(key) not in (None, 0):
                if (side := to_number(entry[key])) is None or side < 1 or side != int(side):
                    raise ValueError(f"{at} has {key} {shortened_repr(entry[key])}, not a number of pixels")
        if root is None:
            raise ValueError(f"{at} has no {'width' if size[0] is None else 'height'}")
        file = inspect_image(root / entry["file_name"], decode=False)
        if file.error:
            raise ValueError(f"{at} has no size, and {root / entry['file_name']} cannot be read: {file.error}")
        size = [file.width, file.height]
    if same_json(stated, size):
        return entry
    changes["image sizes filled in"] += 1
    return {**entry, "width": size[0], "height": size[1]}
