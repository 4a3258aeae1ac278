"""YOLO's layout: a data.yaml, images, and a text file of labels for each (https://docs.ultralytics.com/datasets/detect)."""

from __future__ import annotations

import glob
import math
import os
from pathlib import Path
from typing import Any

import yaml

from detrkit.runtime.text import plural

from .dataset_images import ALL, Box, Corners, DatasetImage, Problems, add_box, inspect_images, read_text, relative
from .files import DatasetFiles, beginning, image_files
from .images import image_suffixes
from .reading import Dataset, Format, ReadOptions
from .values import to_number

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NAME_LISTS = ("classes.txt", "obj.names")
YAML = (".yaml", ".yml")
LABEL_FOLDERS = {"images": "labels", "Images": "Labels", "IMAGES": "LABELS"}


def find_yolo(files: DatasetFiles) -> Path | None:
    """The YAML file with class names and a split, or a list of class names next to label files.

    Raises:
        ValueError: several YAML files describe a dataset, and none is called data.yaml.
    """
    if files.source.is_file():
        return files.source if files.source.suffix.lower() in (*YAML, ".txt") else None
    described = [path for path in _yaml_files(files.root) if _describes(path, *SPLITS)]
    described = [path for path in described if path.stem == "data"][:1] or described
    if len(described) > 1:
        raise ValueError(f"{files.root} has several descriptions: name one of {', '.join(map(str, described[:5]))}")
    if described:
        return described[0]
    names = guess_yolo(files)
    return names if names and names.name in NAME_LISTS and any(map(_has_rows, files.sample(".txt"))) else None


def guess_yolo(files: DatasetFiles) -> Path | None:
    """data.yaml, another YAML file with class names, or a list of class names; else the folder, if it has images and
    label files."""
    found = _yaml_files(files.root)
    usual = [path for path in found if path.stem == "data"]
    named = [path for path in found if _describes(path)]
    lists = [files.root / name for name in NAME_LISTS if (files.root / name).is_file()]
    labelled = [files.root] if files.images and any(map(_has_relative_rows, files.sample(".txt"))) else []
    return next(iter([*usual, *named, *lists, *labelled]), None)


def read_yolo(files: DatasetFiles, description: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read a YOLO dataset.

    An image without a label file, or with an empty one, is background. A row is `class x y w h`, relative to the image,
    or `class x1 y1 x2 y2 x3 y3 …`, a polygon, of which the box is taken.

    Args:
        description: what `find_yolo` returned.
        options: `classes` are names instead of those in the description.

    Raises:
        ValueError: the description cannot be used.
    """
    classes, decode = options.classes, options.decode
    if description.suffix in (".yaml", ".yml"):
        content = _load(description)
        root = _root(content, description)
        names = list(classes or ()) or _names(content.get("names"), description)
        splits = _splits(content, root, description, problems)
        has_keypoints = "kpt_shape" in content
    else:
        content, has_keypoints = {}, False
        root = description if description.is_dir() else description.parent
        names = list(classes or ()) or _listed_names(description)
        splits = _splits_of_folders(root)
    if not names:
        raise ValueError(f"{description} names no classes: add `names`, or give them by classes=")
    if "nc" in content and content["nc"] != str(len(names)):
        problems.add("number of classes", f"{description.name} says nc: {content['nc']}, but has {len(names)} names")
    for number, name in enumerate(names):
        if name in names[:number]:
            problems.add("class named twice", f"{description.name}: {name} is also class {number}: taken as one")

    image_files = inspect_images((path for paths in splits.values() for path in paths), decode)
    images: dict[Path, DatasetImage] = {}
    labels = {path: _label_file(path, root) for path in image_files}
    for path, file in image_files.items():
        if file.error:
            problems.add(file.kind, f"{relative(path, root)}: {file.error}: left out")
            continue
        image = images[path] = DatasetImage(path, file.width, file.height)
        if labels[path].is_file():
            _read_labels(image, labels[path], names, root, problems, has_keypoints)
    for split, paths in splits.items():
        if paths and not any(labels[path].is_file() for path in paths):
            line = f"{split}: none of {plural(len(paths), 'image')} has one, such as {relative(labels[paths[0]], root)}"
            problems.add("no label files", line)
    _report_lost_labels(labels, root, problems)
    parts = {split: [images[path] for path in paths if path in images] for split, paths in splits.items()}
    return Dataset(parts, root, names)


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in YAML) if folder.is_dir() else []


def _load(path: Path) -> dict[str, Any]:
    """Read a YAML file with all values as text: a class may be called `no`, or 1."""
    try:
        content = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f"line {place.line + 1}: " if place else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path} is not YAML: {line}{problem}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not describe a dataset: it has no `names` and `train`")
    return content


def _describes(path: Path, *splits: str) -> bool:
    """Whether a YAML file has class names, and one of the splits."""
    try:
        content = _load(path)
    except (OSError, ValueError):
        return False
    return bool(content.get("names")) and (not splits or any(content.get(split) for split in splits))


def _has_rows(path: Path) -> bool:
    """Whether a text file begins with a row of labels."""
    return bool(_first_row(path))


def _has_relative_rows(path: Path) -> bool:
    """Whether a text file begins with a row of labels whose coordinates are parts of the image."""
    row = _first_row(path)
    return bool(row) and all(0 <= value <= 1 for value in row[1:])


def _first_row(path: Path) -> list[float]:
    """The numbers of the first row of labels of a text file; [] if it does not begin with one."""
    row = next((line for line in beginning(path).splitlines() if line.strip()), "").split()
    numbers = [number for word in row if (number := to_number(word)) is not None]
    return numbers if len(numbers) == len(row) >= 5 and row[0].isdecimal() else []


def _listed_names(description: Path) -> list[str]:
    """The names of a list of class names; ValueError for a dataset's folder, which has none."""
    if description.is_dir():
        raise ValueError(
            f"{description} has YOLO's labels without names of their classes: list the names in "
            f"{description / NAME_LISTS[0]}, one in a line, in the order of their numbers; or convert it with classes="
        )
    return [line.strip() for line in read_text(description).splitlines() if line.strip()]


def _names(names: Any, description: Path) -> list[str]:
    if isinstance(names, dict):
        if sorted(names) != sorted(str(i) for i in range(len(names))):
            raise ValueError(f"{description}: the keys of `names` are not 0 to {len(names) - 1}")
        names = [names[str(i)] for i in range(len(names))]
    if isinstance(names, str):
        names = [names] if names else []
    if not isinstance(names, list | None) or not all(isinstance(name, str) for name in names or ()):
        raise ValueError(f"{description}: `names` is neither a list of names nor names by number")
    return [" ".join(name.split()) for name in names or ()]


def _root(content: dict[str, Any], description: Path) -> Path:
    """`path` if it exists, else the dataset's folder, as descriptions often name a folder of another machine."""
    stated = content.get("path")
    if isinstance(stated, str) and stated:
        root = _existing([description.parent / stated])
        if root and root.is_dir():
            return root
    return description.parent


def _splits(content: dict[str, Any], root: Path, description: Path, problems: Problems) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for key, split in SPLITS.items():
        places = content.get(key) or []
        for place in [places] if isinstance(places, str) else places:
            if not isinstance(place, str):
                problems.add("split that is no path", f"{description.name}, {key}: {str(place)[:50]}: left out")
                continue
            path = _find(place, root)
            if path is None:
                problems.add("missing split", f"{description.name}, {key}: there is no {place} in {root}: left out")
                continue
            listed = splits.setdefault(split, [])
            new = image_files(path) if path.is_dir() else _listed_images(path, root, problems)
            known = set(listed)
            listed += [image for image in new if image not in known]
    return splits


def _find(place: str, root: Path) -> Path | None:
    """A path in the description; `../train/images` often means `train/images`."""
    place = place if _existing([root / place]) else place.replace("\\", "/")
    inside = place
    while inside.startswith("../"):
        inside = inside[3:]
    return _existing([root / place, root / inside])


def _existing(paths: list[Path]) -> Path | None:
    """The first path that exists, without `..` in it; names may be invalid."""
    for path in paths:
        try:
            if path.exists():
                return Path(os.path.normpath(path))
        except (OSError, ValueError):  # too long, or not a name at all
            continue
    return None


def _splits_of_folders(root: Path) -> dict[str, list[Path]]:
    """Without a description: the folders in `images`, or all images."""
    images = root / "images" if (root / "images").is_dir() else root
    splits: dict[str, list[Path]] = {}
    for path in image_files(images):
        first = path.relative_to(images).parts[0]
        splits.setdefault(SPLITS.get(first, ALL), []).append(path)
    return splits


def _listed_images(file: Path, root: Path, problems: Problems) -> list[Path]:
    where = relative(file, root)
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except (OSError, ValueError) as error:
        problems.add("broken list", f"{where}: {error}: left out")
        return []
    found: dict[Path, None] = {}
    suffixes = image_suffixes()
    for line in filter(None, lines):
        # Lists are written on Windows, too.
        path = _existing([base / name for name in (line, line.replace("\\", "/")) for base in (file.parent, root)])
        if path is None or path.suffix.lower() not in suffixes:
            problems.add("missing image", f"{where}: {line}: left out")
        elif path in found:
            problems.add("name given twice", f"{where}: {line}: kept once")
        else:
            found[path] = None
    return list(found)


def _label_file(image: Path, root: Path) -> Path:
    """The label file of an image: the last `images` in its path becomes `labels`, else it lies next to the image."""
    beside = image.with_suffix(".txt")
    parts = list(relative(beside, root).split("/"))
    places = [i for i, part in enumerate(parts[:-1]) if part in LABEL_FOLDERS]
    if not places:
        return beside
    parts[places[-1]] = LABEL_FOLDERS[parts[places[-1]]]
    path = root / "/".join(parts)
    return beside if beside.is_file() and not path.is_file() else path


def _read_labels(
    image: DatasetImage, file: Path, names: list[str], root: Path, problems: Problems, has_keypoints: bool
) -> None:
    try:
        rows = read_text(file).splitlines()
    except (OSError, ValueError) as error:
        line = f"{relative(file, root)}: {error}: none of its objects is taken, the image counts as background"
        problems.add("broken label file", line)
        return
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        where = f"{relative(file, root)}, row {number}"
        try:
            values = [float(word) for word in row.split()]
            corners = _corners(values, has_keypoints)
        except ValueError:
            problems.add("row that is no object", f"{where}: {row[:60]}: neither a box nor a polygon: left out")
            continue
        if values[0] not in range(len(names)):
            problems.add("unknown class", f"{where}: class {values[0]:g}, but there are {len(names)}: left out")
            continue
        scaled = tuple(v * (image.height if i % 2 else image.width) for i, v in enumerate(corners))
        add_box(image, Box(names[int(values[0])], scaled), where, problems)


def _corners(values: list[float], has_keypoints: bool) -> Corners:
    """Box of a row, relative to the image; ValueError for a row that is neither box nor polygon."""
    if not values or not all(map(math.isfinite, values)):
        raise ValueError
    if len(values) == 5 or (has_keypoints and len(values) > 5):
        x, y, w, h = values[1:5]
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(values) < 7 or len(values) % 2 == 0:
        raise ValueError
    xs, ys = values[1::2], values[2::2]
    return min(xs), min(ys), max(xs), max(ys)


def _report_lost_labels(labels: dict[Path, Path], root: Path, problems: Problems) -> None:
    """Report label files without an image."""
    used = set(labels.values())
    for folder in sorted({file.parent for file in used}):
        for file in sorted(folder.glob("*.txt")):
            stem = folder / file.stem
            lists = file.name in NAME_LISTS or file.parent == root
            if file not in used and not lists and not _has_image(stem, root):
                problems.add("missing image", f"{relative(file, root)}: no image of that name: left out")


def _has_image(stem: Path, root: Path) -> bool:
    """Whether the image of a label file exists, though no split lists it."""
    parts = relative(stem, root).split("/")
    places = [i for i, part in enumerate(parts[:-1]) if part in LABEL_FOLDERS.values()]
    if places:
        parts[places[-1]] = {labels: images for images, labels in LABEL_FOLDERS.items()}[parts[places[-1]]]
    image = root / "/".join(parts)
    suffixes = image_suffixes()
    return any(path.suffix.lower() in suffixes for path in image.parent.glob(f"{glob.escape(image.name)}.*"))


CONTENT = "data.yaml, or class names in classes.txt and text files of labels"
YOLO = Format("yolo", "YOLO", CONTENT, find_yolo, read_yolo, guess_yolo)
