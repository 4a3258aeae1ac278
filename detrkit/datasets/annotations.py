"""Mistakes in annotation files, in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog


@contextmanager
def annotations_explained(names: str | Sequence[str]) -> Iterator[None]:
    """What goes wrong inside is told by the mistake in these datasets' annotation files that led to it, if one did.

    Raises:
        ValueError: in place of an error that is not one of input.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError):
        raise
    except Exception as error:
        for name in [names] if isinstance(names, str) else names:
            json_file = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog.list() else None
            if json_file and (problem := annotation_problem(json_file)):
                raise ValueError(problem) from error
        raise


def annotation_problem(json_file: str | Path) -> str | None:
    """The first mistake in an annotation file of COCO's format that something would stumble over; None if there is
    none. Far larger numbers than images have count as mistakes."""
    try:
        content = json.loads(Path(json_file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"annotation file {json_file} cannot be read: {error}"
    problem = _first_problem(content)
    return problem and f"annotation file {json_file}: {problem}"


def _first_problem(content: Any) -> str | None:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, not a mapping of images, annotations and categories"
    for part, needed in _NEEDED.items():
        if not isinstance(content.get(part), list):
            return f"it has no list of {part}"
        ids = set()
        for number, entry in enumerate(content[part]):
            if not isinstance(entry, dict):
                return f"{part}[{number}] is {_short(entry)}, not a mapping"
            for key, (is_right, what) in needed.items():
                if key not in entry:
                    return f"{part}[{number}] has no {key}"
                if not is_right(entry[key]):
                    return f"{part}[{number}] has {key} {_short(entry[key])}, not {what}"
            if entry["id"] in ids:
                return f"{part}[{number}] has id {entry['id']}, as an entry before it"
            ids.add(entry["id"])
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def is_number(value: Any) -> bool:
    """One of a size that images may have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST <= value <= MOST


def is_id(value: Any) -> bool:
    """A whole number that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _is_size(value: Any) -> bool:
    return is_id(value) and 0 < value <= MOST


def is_box(value: Any) -> bool:
    """Four numbers; whether they enclose anything is another question."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


MOST = 1e9
_NEEDED: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "images": {
        "id": (is_id, "a whole number"),
        "file_name": (lambda name: isinstance(name, str) and "\0" not in name and name != "", "a file's name"),
        "width": (_is_size, "a number of pixels"),
        "height": (_is_size, "a number of pixels"),
    },
    "annotations": {
        "id": (is_id, "a whole number"),
        "image_id": (is_id, "a whole number"),
        "category_id": (is_id, "a whole number"),
        "bbox": (is_box, "x, y, width and height"),
        "area": (is_number, "a number of pixels"),
        "iscrowd": (lambda value: value in (0, 1), "0 or 1"),
    },
    "categories": {
        "id": (is_id, "a whole number"),
        "name": (lambda name: isinstance(name, str), "a text"),
    },
}
