"""The files of a dataset's folder: images by name, annotation files by suffix, text in any encoding."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from .dataset_images import ALL, Problems, relative
from .images import image_suffixes

SPLITS = {
    "trainval": "trainval", "train": "train", "training": "train",
    "valid": "val", "val": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
NOT_PHOTOGRAPHS = re.compile(r"mask|segm|trimap|depth|thumb", re.IGNORECASE)  # folders beside those of the images
IMAGE_FOLDERS = {"jpegimages", "images", "image", "imgs", "img", "photos", "data"}
ANNOTATION_FOLDERS = {"annotations", "annotation", "annots", "labels", "label", "xml", "xmls"}
NOT_IMAGES = {".json", ".xml", ".csv", ".txt"}  # some tools let an annotation file name itself
BEGINNING = 1 << 16  # bytes that are read to recognise a file
MOST_SAMPLED = 200  # files of one suffix that are read to recognise a layout
LARGEST_FIELD = 1 << 30  # of a CSV file; polygons are long
DELIMITERS = ",;\t|"


class DatasetFiles:
    """All files of a dataset, except hidden ones.

    Args:
        source: the dataset's folder, or one annotation file. The images are then in its folder, or if that has none, in
            the folder above.
    """

    def __init__(self, source: Path):
        self.source = source
        self.root = source.parent if source.is_file() else source
        self.paths = walk(self.root)
        if source.is_file() and not self.images:
            self.source = source.absolute()
            self.root = self.source.parent.parent
            self.paths = walk(self.root)
            del self.images

    def annotation_files(self, *suffixes: str) -> list[Path]:
        """Files with one of the suffixes, by path; only the source if that is a file."""
        paths = [self.source] if self.source.is_file() else self.paths
        return [path for path in paths if path.suffix.lower() in suffixes]

    def sample(self, *suffixes: str) -> list[Path]:
        """Some of the `annotation_files`, from all parts of the list."""
        paths = self.annotation_files(*suffixes)
        return paths[:: max(1, len(paths) // MOST_SAMPLED)]

    @cached_property
    def images(self) -> list[Path]:
        suffixes = image_suffixes()
        return [path for path in self.paths if path.suffix.lower() in suffixes]

    def by_name(self, name: str, beside: Path) -> list[Path]:
        """The images that a name in an annotation file may mean, all equally likely; [] for none.

        An existing path has priority. Otherwise these are the images of that file name anywhere in the dataset that
        share the longest part of the path. Backslashes count as slashes.

        Args:
            name: a file name, or a path from `beside` or from the root.
            beside: the folder of the annotation file.
        """
        for spelling in dict.fromkeys([name, name.replace("\\", "/")]):
            for folder in (beside, self.root):
                if is_file(path := folder / spelling) and path.suffix.lower() not in NOT_IMAGES:
                    return [Path(os.path.normpath(path))]
        stated = PurePosixPath(name.replace("\\", "/"))
        return self._likeliest(self._by_name.get(stated.name.casefold(), []), stated, beside)

    def by_stem(self, stem: str, beside: Path, name: str = "") -> list[Path]:
        """The images called `stem`, with any suffix, that may belong to an annotation file; all equally likely.

        Args:
            beside: folder of the annotation file.
            name: name of the image in the annotation file.
        """
        stated = PurePosixPath(name.replace("\\", "/"))
        here = self._by_folder.get((beside, stem), [])
        return self._likeliest(here or self._by_stem.get(stem, []), stated, beside)

    def locate(self, name: str, beside: Path, where: str, problems: Problems, stem: str = "") -> Path | None:
        """The image of an annotation, by its name, else by its stem; reports a problem if there is not exactly one."""
        found = (name and self.by_name(name, beside)) or (stem and self.by_stem(stem, beside, name)) or []
        if not found:
            problems.add("missing image", f"{where}: there is no image {name or stem}: left out")
            return None
        if len(found) > 1:
            problems.add("several images of one name", f"{where}: {relative(found[0], self.root)} is taken")
        return found[0]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found = defaultdict(list)
        for path in self.images:
            found[path.name.casefold()].append(path)
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found = defaultdict(list)
        for path in self.images:
            found[path.stem].append(path)
        return found

    @cached_property
    def _by_folder(self) -> dict[tuple[Path, str], list[Path]]:
        found = defaultdict(list)
        for path in self.images:
            found[path.parent, path.stem].append(path)
        return found

    def _likeliest(self, paths: list[Path], stated: PurePosixPath, beside: Path) -> list[Path]:
        if len(paths) < 2:
            return paths
        folders = self._folders(beside) - ANNOTATION_FOLDERS
        number = _last_digits(beside.name)

        def likelihood(path: Path) -> tuple:
            pairs = zip(reversed(path.parts), reversed(stated.parts), strict=False)
            return (
                sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)),
                path.parent == beside,
                not NOT_PHOTOGRAPHS.search(path.parent.name),
                len(folders & self._folders(path.parent)),
                _last_digits(path.parent.name) == number,  # KITTI's label_2 belongs to image_2
                path.parent.name.lower() in IMAGE_FOLDERS,
            )

        ranked = [(likelihood(path), path) for path in paths]
        best = max(rank for rank, _ in ranked)
        return [path for rank, path in ranked if rank == best]

    def _folders(self, folder: Path) -> set[str]:
        """The names of a folder and those above it, below the root."""
        return {part.lower() for part in folder.relative_to(self.root).parts} if folder != self.root else set()


def walk(folder: Path) -> list[Path]:
    """The files in a folder and those below it, by path. Links to folders are followed, hidden names are left out."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        identity = os.stat(place).st_dev, os.stat(place).st_ino
        if identity in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)


def image_files(folder: Path) -> Iterator[Path]:
    """Image files in a folder and those below it, by path."""
    suffixes = image_suffixes()
    return (path for path in walk(folder) if path.suffix.lower() in suffixes and path.is_file())


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def split_of_folders(path: Path, root: Path) -> str:
    """The split that a folder between `root` and the path is named after, the innermost first, else "all"."""
    inside = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return next(filter(None, map(split_named, reversed(inside))), ALL)


def split_named(name: str) -> str | None:
    """The split named in a text: "train" for "train2017" and "_train.coco", None for "trained"."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((split for word, split in SPLITS.items() if word in words), None)


def beginning(path: Path) -> str:
    """The first characters of a text file in any encoding."""
    try:
        with path.open("rb") as file:
            data = file.read(BEGINNING)
    except OSError:
        return ""
    return data.decode(_encoding(data), errors="replace")


def read_any_text(path: Path, where: str, problems: Problems) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark, else in Windows-1252, which is reported.

    Raises:
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    encoding = _encoding(data)
    if encoding == "cp1252":
        problems.add("text that is not UTF-8", f"{where}: read as Windows-1252")
    return data.decode(encoding, errors="replace")


def _encoding(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(data) != BEGINNING or error.start < BEGINNING - 3:  # not a character that is cut off at the end
            return "cp1252"
    return "utf-8-sig"


def read_json(path: Path, where: str, problems: Problems) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON; the message names the line.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(read_any_text(path, where, problems))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def csv_header(path: Path) -> list[str]:
    """The names of the columns, in lower case; empty for a file without text."""
    line = next(iter(beginning(path).splitlines()), "")
    row = next(csv.reader([line], delimiter=_delimiter(line)), [])
    return [name.strip().lstrip("#").strip().lower() for name in row]


def csv_rows(path: Path, where: str, problems: Problems) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the line number of each row of a CSV file, and its values by column in lower case; "" for missing values.

    Raises:
        ValueError: a row cannot be read; the message names the line.
    """
    head = beginning(path)
    columns = csv_header(path)
    with path.open("rb") as file:
        encoding = _encoding(file.read(BEGINNING))
    if encoding == "cp1252":
        problems.add("text that is not UTF-8", f"{where}: read as Windows-1252")
    delimiter = _delimiter(next(iter(head.splitlines()), ""))
    with path.open(encoding=encoding, errors="replace", newline="") as file, _long_fields():
        rows = csv.reader(file, delimiter=delimiter)
        try:
            next(rows, None)
            for row in rows:
                if any(value.strip() for value in row):
                    values = [value.strip() for value in row] + [""] * (len(columns) - len(row))
                    yield rows.line_num, dict(zip(columns, values, strict=False))
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=line.count)


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _last_digits(name: str) -> str:
    return re.search(r"\d*$", name).group()
