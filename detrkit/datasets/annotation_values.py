"""Values of annotations in COCO's format: ids, numbers, boxes and outlines."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as run_lengths

MOST = 1e9  # far more pixels than an image has
LARGEST_ID = 2**62  # fits into 64 bits with a sign
NOT_A_CROWD, A_CROWD = (0, None, "0", "false", "False"), (1, "1", "true", "True")


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not far above image sizes."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST <= value <= MOST


def is_id(value: Any) -> bool:
    """Whether a value is a whole number that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_ID


def required_value(entry: Any, key: str, at: str) -> Any:
    """The value of `key`; ValueError, which names the place `at`, if there is none."""
    if not isinstance(entry, dict):
        raise ValueError(f"{at} is {shortened_repr(entry)}, not a mapping")
    if key not in entry:
        raise ValueError(f"{at} has no {key}")
    return entry[key]


def required_id(entry: Any, key: str, at: str) -> int | float | str:
    """The id in `key`; ValueError, which names the place `at`, if there is none."""
    value = required_value(entry, key, at)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{at} has {key} {shortened_repr(value)}, not a number or a text")
    return value


def to_number(value: Any) -> float | int | None:
    """A number, or a text that is one, as a number; None for other values and for values far above image sizes."""
    if isinstance(value, str):
        try:
            value = float(value) if len(value) < 40 else None
        except ValueError:
            return None
    return value if is_number(value) else None


def shortened_repr(value: Any) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def box_of(entry: dict[str, Any], at: str) -> list[float] | None:
    """x, y, width and height of an annotation, from its outline if it has no box; None if the area is 0.

    Raises:
        ValueError: it has neither, with the place `at`.
    """
    box, outline = entry.get("bbox"), entry.get("segmentation")
    numbers = [to_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
    if None not in numbers and numbers[2] > 0 and numbers[3] > 0:
        return numbers
    if (outlined := box_of_segmentation(outline)) is not None:
        return outlined
    if None not in numbers:
        return None
    if not box:
        raise ValueError(f"{at} has no bbox")
    raise ValueError(f"{at} has bbox {shortened_repr(box)}, not x, y, width and height")


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """x, y, width and height around an outline; None if it is not valid, or its area is 0.

    Args:
        segmentation: polygons, one polygon without a list around it, or a mask in COCO's run-length encoding.
    """
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation)
    if not isinstance(segmentation, list):
        return None
    polygons = segmentation if segmentation and isinstance(segmentation[0], list) else [segmentation]
    outlines = [[to_number(value) for value in polygon] for polygon in polygons if isinstance(polygon, list)]
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
    except Exception:  # pycocotools raises many kinds for an invalid encoding
        return None
    return box if all(map(is_number, box)) and box[2] > 0 and box[3] > 0 else None


def is_polygon(value: Any) -> bool:
    """Whether a value is x and y of three points or more."""
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(is_number, value))


def _is_mask(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("counts"), list | str):
        return False
    size = value.get("size")
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side <= MOST for side in size)


def is_segmentation(value: Any) -> bool:
    """Whether detectron2 reads the segmentation without losing the object."""
    if isinstance(value, list):
        if not all(isinstance(part, list) for part in value):
            return False
        return not value or any(len(part) >= 6 and len(part) % 2 == 0 for part in value)
    return value is None or _is_mask(value)


def crowd_of(entry: dict[str, Any], at: str) -> int:
    """1 if an annotation is a crowd, else 0; ValueError if its `iscrowd` or `ignore` is neither."""
    for key in ("iscrowd", "ignore"):
        if entry.get(key) not in (*NOT_A_CROWD, *A_CROWD):
            raise ValueError(f"{at} has {key} {shortened_repr(entry[key])}, not 0 or 1")
    return int(entry.get("iscrowd") in A_CROWD or entry.get("ignore") in A_CROWD)


def same_json(value: Any, other: Any) -> bool:
    """Whether values are equal in JSON, where 1, 1.0 and True differ."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same_json, value, other))
    if isinstance(value, int | float) and isinstance(other, float):
        return type(value) is not bool and value == other
    return type(value) is type(other) and value == other


def loose_key(value: int | float | str) -> int | str:
    """An id by its number: "0001" and 1 are equal."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else text
    return exact_key(value)


def exact_key(value: int | float | str) -> int | str:
    """An id by its value: 1.0 and 1 are equal, "1" is not."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    return value
