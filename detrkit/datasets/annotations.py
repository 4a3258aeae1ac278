"""Annotation files in COCO's format: mend what can have one meaning only, and name the first mistake that cannot.

pycocotools and detectron2 take much for granted. An annotation with id 0 counts as unmatched, ids that occur twice
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
from pycocotools import mask as run_lengths

from .pictures import look_at

MOST = 1e9  # far more than an image has pixels, or a number that means something
LARGEST_ID = 2**62  # fits into 64 bits with a sign
ORIGINAL_ID = "original_id"  # in a normalised file: the id of this image or category in the file that it was made from
SHOWN = 5  # names that an error lists
NOT_A_CROWD, A_CROWD = (0, None, "0", "false", "False"), (1, "1", "true", "True")


class UnmatchedClasses(ValueError):
    """An annotation file has objects of classes that a model does not have."""


@contextmanager
def annotations_explained(names: str | Sequence[str]) -> Iterator[None]:
    """Replace an error inside the block by the mistake in these datasets' annotation files that led to it, if one did.

    Raises:
        ValueError: in place of an error that is not one of input.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError):
        raise
    except Exception as error:
        for name in [names] if isinstance(names, str) else names:
            metadata = MetadataCatalog.get(name) if name in DatasetCatalog.list() else None
            json_file = metadata and metadata.get("json_file")
            if json_file and (problem := annotation_problem(json_file, metadata.get("image_root"))):
                raise ValueError(problem) from error
        raise


def annotation_problem(json_file: str | Path, image_root: str | Path | None = None) -> str | None:
    """The first mistake in an annotation file that `normalise` cannot mend, in one line; None if there is none."""
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
    """Content of an annotation file that pycocotools and detectron2 read as it is meant.

    * Images: entries of one file become one. Ids that are texts of numbers or floats become whole numbers; if one of
      them cannot, all are numbered from 1. Missing sizes are read from the files; `\\` is tried as `/`.
    * Categories: ids as those of images. With `classes`, ids count from 1 in that order.
    * Annotations: numbered from 1 if an id is missing, below 1, not a whole number, or given twice. A missing box is
      that of the segmentation. An area that is not above 0 is width × height; a missing `iscrowd` is 0; `ignore` is a
      crowd. Left out are boxes without area and annotations of images that are not listed.

    Entries with a new id keep the old one as `original_id`.

    Args:
        content: as JSON has it; left as it is. Without `annotations` it is a list of images to detect objects in.
        image_root: the folder of the images, for what the content does not say.
        classes: names of all classes, in the order of a model's outputs.

    Returns:
        The content, and how many changes of each kind were made. Without a change it is the content that was given.

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
        found = _annotations(content["annotations"], image_id_of, category_id_of, joined, changes)
        result["annotations"] = found
        if strange := sorted({entry["category_id"] for entry in found if isinstance(entry["category_id"], str)}):
            what = f"class {strange[0]}" if len(strange) == 1 else f"classes {shortened(strange)}"
            raise UnmatchedClasses(f"it has objects of the {what}, but the model's are {shortened(classes or ())}")
    return (result if changes else content), changes


def original_ids(content: Mapping[str, Any], part: str) -> dict[int, Any] | None:
    """Ids of `part`, "images" or "categories", in a normalised file to those in the file that it was made from.

    Entries that were not in that file are not in the result. None if all ids are the original ones.
    """
    entries = content[part]
    if not any(ORIGINAL_ID in entry for entry in entries):
        return None
    originals = {entry["id"]: entry.get(ORIGINAL_ID, entry["id"]) for entry in entries}
    return {id_: original for id_, original in originals.items() if original is not None}


def shortened(names: Sequence[str]) -> str:
    """Names as an error lists them."""
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
        name = _value(entry, "file_name", at)
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"{at} has file_name {_short(name)}, not a file's name")
        place = by_name.setdefault(name, len(images))
        key = key_of(entry["id"])
        if by_key.setdefault(key, place) != place:
            raise ValueError(f"{at} has id {_short(entry['id'])}, as an entry before it")
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
        name = _value(entry, "name", at)
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise ValueError(f"{at} has name {_short(name)}, not a text")
        if key_of(entry["id"]) in keys:
            raise ValueError(f"{at} has id {_short(entry['id'])}, as an entry before it")
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
    found: list[dict[str, Any]] = []
    in_joined: set[tuple] = set()
    for number, entry in enumerate(entries):
        at = f"annotations[{number}]"
        image_id = image_id_of(_id(entry, "image_id", at))
        category_id = category_id_of(_id(entry, "category_id", at))
        if category_id is None:
            raise ValueError(f"{at} has category_id {_short(entry['category_id'])}, which its categories do not list")
        if image_id is None:
            changes["annotations of images that are not listed left out"] += 1
            continue
        box, segmentation, crowd = _box(entry, at), entry.get("segmentation"), _crowd(entry, at)
        if box is None:
            changes["boxes without area left out"] += 1
            continue
        fixed: dict[str, Any] = {"image_id": image_id, "category_id": category_id, "bbox": box, "iscrowd": crowd}
        if not (is_number(entry.get("area")) and entry["area"] > 0):
            fixed["area"] = box[2] * box[3]
        if not _is_segmentation(segmentation):
            fixed["segmentation"] = [segmentation] if _is_polygon(segmentation) else []
        if image_id in joined:
            same = (image_id, category_id, crowd, *box)
            if same in in_joined:
                changes["objects given twice left out"] += 1
                continue
            in_joined.add(same)
        if different := [key for key, value in fixed.items() if not _same(entry.get(key), value)]:
            changes.update(f"annotations with a new {key}" for key in different)
            entry = {**entry, **{key: fixed[key] for key in different}}
        if "ignore" in entry and entry["ignore"] != 0:  # which detectron2 refuses
            changes["ignore read as iscrowd"] += 1
            entry = {key: value for key, value in entry.items() if key != "ignore"}
        found.append(entry)
    ids = [entry.get("id") for entry in found]
    if not all(type(id_) is int and 0 < id_ < LARGEST_ID for id_ in ids) or len(set(ids)) < len(ids):
        changes["annotation ids numbered anew"] += len(ids)
        found = [{**entry, "id": number} for number, entry in enumerate(found, 1)]
    return found


def class_key(name: str) -> str:
    """What two spellings of one class have in common: they may differ in white space."""
    return " ".join(name.split())


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both are the same classes in the same order."""
    return list(map(class_key, names)) == list(map(class_key, others))


def is_number(value: Any) -> bool:
    """Whether it is a number of a size that images may have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST <= value <= MOST


def is_id(value: Any) -> bool:
    """Whether it is a whole number that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_ID


def _value(entry: Any, key: str, at: str) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"{at} is {_short(entry)}, not a mapping")
    if key not in entry:
        raise ValueError(f"{at} has no {key}")
    return entry[key]


def _id(entry: Any, key: str, at: str) -> int | float | str:
    value = _value(entry, key, at)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{at} has {key} {_short(value)}, not a number or a text")
    return value


def _keys(entries: list, part: str) -> Callable[[int | float | str], int | str]:
    """A function that makes different forms of one id equal: 1, 1.0, "1" and "0001", unless that confuses entries."""
    ids = [_id(entry, "id", f"{part}[{number}]") for number, entry in enumerate(entries)]
    return _loose_key if len({*map(_loose_key, ids)}) == len({*map(_exact_key, ids)}) else _exact_key


def _loose_key(value: int | float | str) -> int | str:
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else text
    return _exact_key(value)


def _exact_key(value: int | float | str) -> int | str:
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    return value


def _numbered(keys: list[int | str], what: str, entries: list[dict[str, Any]], changes: Counter[str]) -> list[int]:
    """Give the entries whole numbers as ids: those of their keys, or if not all keys are numbers, 1, 2, …"""
    usable = all(map(is_id, keys))
    ids = list(keys) if usable else list(range(1, len(keys) + 1))
    for place, (entry, id_) in enumerate(zip(entries, ids, strict=True)):
        if not _same(entry["id"], id_):
            changes[f"{what} as whole numbers"] += 1
            entries[place] = {**entry, "id": id_, ORIGINAL_ID: entry["id"]}
    return ids


def _same(value: Any, other: Any) -> bool:
    """Equal and of one type: 1, 1.0 and True are different in JSON."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, int | float) and isinstance(other, float):
        return type(value) is not bool and value == other
    return type(value) is type(other) and value == other


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
    size = [_number(side) for side in stated]
    if all(side is not None and side >= 1 and side == int(side) for side in size):
        size = list(map(int, size))
    else:
        for key in ("width", "height"):
            if entry.get(key) not in (None, 0):
                if (side := _number(entry[key])) is None or side < 1 or side != int(side):
                    raise ValueError(f"{at} has {key} {_short(entry[key])}, not a number of pixels")
        if root is None:
            raise ValueError(f"{at} has no {'width' if size[0] is None else 'height'}")
        file = look_at(root / entry["file_name"], decode=False)
        if file.error:
            raise ValueError(f"{at} has no size, and {root / entry['file_name']} cannot be read: {file.error}")
        size = [file.width, file.height]
    if _same(stated, size):
        return entry
    changes["image sizes filled in"] += 1
    return {**entry, "width": size[0], "height": size[1]}


def _box(entry: dict[str, Any], at: str) -> list[float] | None:
    """x, y, width and height; None if nothing is inside."""
    box, outline = entry.get("bbox"), entry.get("segmentation")
    numbers = [_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
    if None not in numbers and numbers[2] > 0 and numbers[3] > 0:
        return numbers
    if (outlined := box_of_segmentation(outline)) is not None:
        return outlined
    if None not in numbers:
        return None
    if not box:
        raise ValueError(f"{at} has no bbox")
    raise ValueError(f"{at} has bbox {_short(box)}, not x, y, width and height")


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """x, y, width and height around an outline; None if it is none, or nothing is inside.

    Args:
        segmentation: polygons, one polygon without a list around it, or a mask in COCO's run-length encoding.
    """
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation)
    if not isinstance(segmentation, list):
        return None
    polygons = segmentation if segmentation and isinstance(segmentation[0], list) else [segmentation]
    outlines = [[_number(value) for value in polygon] for polygon in polygons if isinstance(polygon, list)]
    used = [o for o in outlines if len(o) >= 4 and len(o) % 2 == 0 and None not in o]
    if not used:
        return None
    xs, ys = ([value for outline in used for value in outline[start::2]] for start in (0, 1))
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return box if box[2] > 0 and box[3] > 0 else None


def _box_of_mask(mask: dict[str, Any]) -> list[float] | None:
    if not _is_mask(mask):
        return None
    try:
        encoded = run_lengths.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask
        box = [float(value) for value in run_lengths.toBbox(encoded)]
    except Exception:  # pycocotools raises many kinds on what is not an encoding
        return None
    return box if all(map(is_number, box)) and box[2] > 0 and box[3] > 0 else None


def _is_polygon(value: Any) -> bool:
    """x and y of three points or more."""
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(is_number, value))


def _is_mask(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("counts"), list | str):
        return False
    size = value.get("size")
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side <= MOST for side in size)


def _is_segmentation(value: Any) -> bool:
    """What detectron2 reads without losing the object."""
    if isinstance(value, list):
        if not all(isinstance(part, list) for part in value):
            return False
        return not value or any(len(part) >= 6 and len(part) % 2 == 0 for part in value)
    return value is None or _is_mask(value)


def _crowd(entry: dict[str, Any], at: str) -> int:
    for key in ("iscrowd", "ignore"):
        if entry.get(key) not in (*NOT_A_CROWD, *A_CROWD):
            raise ValueError(f"{at} has {key} {_short(entry[key])}, not 0 or 1")
    return int(entry.get("iscrowd") in A_CROWD or entry.get("ignore") in A_CROWD)


def _number(value: Any) -> float | int | None:
    """A number, or the one that a text stands for; None if it is neither, or far larger than images are."""
    if isinstance(value, str):
        try:
            value = float(value) if len(value) < 40 else None
        except ValueError:
            return None
    return value if is_number(value) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
