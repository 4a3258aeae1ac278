"""Annotation files for evaluators: the file itself, or a normalised copy in a cache folder.

The folder is $ALIGN_DETR_CACHE, by default `~/.cache/align_detr`. Copies are named by their content and written
atomically, so any number of processes may share it. Results are stored, so an unchanged file is read only once.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from detrkit.runtime.files import atomic_write

from .annotation_values import is_id
from .annotations import ORIGINAL_ID, normalise, read_annotations

logger = logging.getLogger(__name__)

CACHE = "ALIGN_DETR_CACHE"
VERSION = 1  # of what `normalise` does
SETTLED = 2.0  # seconds after which a changed file has another time of modification
DAYS_KEPT = 90


@dataclass(frozen=True)
class AnnotationFile:
    """Result of `normalised_file`.

    Attributes:
        path: the annotation file to use.
        classes: names by increasing id.
        ids: their ids in `path`.
        original_ids: their ids in the user's file, as far as these are whole numbers.
        objects: the number of annotations that are not crowds.
        changes: see `normalise`; empty if `path` is the user's file.
    """

    path: str
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    original_ids: tuple[int, ...]
    objects: int
    changes: Mapping[str, int]

    def describe_changes(self) -> str:
        """Such as "annotation ids numbered anew (12)"."""
        return ", ".join(f"{kind} ({count})" for kind, count in self.changes.items())


def normalised_file(
    json_file: str | os.PathLike, image_root: str | os.PathLike, classes: Sequence[str] | None = None
) -> AnnotationFile:
    """The annotation file, or a copy with the corrections of `normalise`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, UnmatchedClasses: see `normalise`; the message names the file.
    """
    json_file = os.path.abspath(json_file)
    before = os.stat(json_file)
    state = json_file, os.path.abspath(image_root), before.st_size, before.st_mtime_ns
    key = hashlib.sha256(json.dumps([VERSION, state, classes and list(classes)]).encode()).hexdigest()
    if (known := _recall(key)) is not None:
        return known
    content = read_annotations(json_file)
    try:
        sound, changes = normalise(content, image_root, classes)
    except ValueError as error:
        raise type(error)(f"annotation file {json_file}: {error}") from error
    path = _write(Path(json_file).stem, json.dumps(sound).encode()) if changes else json_file
    objects = sum(not annotation["iscrowd"] for annotation in sound.get("annotations", ()))
    found = AnnotationFile(path, *_classes(sound), objects, dict(changes))
    after = os.stat(json_file)
    is_same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if is_same and time.time() - before.st_mtime > SETTLED:
        _remember(key, found)
    return found


def _classes(content: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Names, ids and original ids."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    originals = [c[ORIGINAL_ID] if is_id(c.get(ORIGINAL_ID)) else c["id"] for c in categories]
    return tuple(category["name"] for category in categories), tuple(ids), tuple(originals)


_recalled: dict[str, AnnotationFile] = {}


def _recall(key: str) -> AnnotationFile | None:
    if key not in _recalled:
        try:
            note = json.loads((_folder() / f"{key}.note").read_bytes())
            found = AnnotationFile(**{name: tuple(v) if isinstance(v, list) else v for name, v in note.items()})
        except (OSError, ValueError, TypeError):
            return None
        _recalled[key] = found
    found = _recalled[key]
    if not Path(found.path).is_file():
        return None
    if found.changes:
        _touch(Path(found.path))
    return found


def _remember(key: str, found: AnnotationFile) -> None:
    _recalled[key] = found
    _replace(_folder() / f"{key}.note", json.dumps(asdict(found)).encode())


def _write(stem: str, content: bytes) -> str:
    """Write a copy unless it exists, and return its path."""
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)[:60]
    path = _folder() / f"{name}-{hashlib.sha256(content).hexdigest()[:20]}.json"
    if path.is_file() and path.stat().st_size == len(content):
        _touch(path)
    else:
        _replace(path, content)
        _forget_old(path.parent)
    return str(path)


def _replace(path: Path, content: bytes) -> None:
    """Replace a file; an error names the variable that moves the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(f"{error}; set ${CACHE} to a folder with space") from error


def _touch(path: Path) -> None:
    """Mark a copy as used, if the system allows it."""
    try:
        os.utime(path)
    except OSError:
        logger.debug("Could not mark %s as used", path)


def _forget_old(folder: Path) -> None:
    oldest = time.time() - DAYS_KEPT * 86400
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except OSError:  # another process was faster, or it belongs to somebody else
            continue


def _folder() -> Path:
    """The cache folder; if it is not writable, a folder of this process."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "align_detr"
    return _writable(Path(os.environ.get(CACHE) or default).expanduser() / "annotations")


@cache
def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except (OSError, RuntimeError) as error:
        own = Path(tempfile.mkdtemp(prefix="align_detr_"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        logger.info("%s cannot be written to (%s): annotations are kept in %s meanwhile", folder, error, own)
        return own
