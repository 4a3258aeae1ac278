"""Convert datasets of any known layout to annotation files in COCO's format."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from pathlib import Path

from tabulate import tabulate

from detrkit.runtime.files import write_if_changed
from detrkit.runtime.text import plural

from .dataset_images import DatasetImage, Problems
from .files import image_files
from .formats import recognise
from .images import image_suffixes
from .reading import Dataset, ReadOptions
from .registration import own_prefix
from .voc import DIFFICULT

VALIDATION = 0.2  # share of the images, if a dataset has no validation split
MOST_LOOKED_AT = 10_000  # files beside a dataset


@dataclass
class Conversion:
    """Result of `convert_dataset`.

    Attributes:
        files: the annotation file of each split.
        contents: content of these files.
        image_root: folder to which their file names are relative.
        problems: problems of the dataset.
        unused: number of images of each split that is in none of the files.
    """

    files: dict[str, Path]
    contents: dict[str, dict]
    image_root: Path
    problems: Problems
    unused: dict[str, int]

    @property
    def classes(self) -> list[str]:
        return [category["name"] for category in next(iter(self.contents.values()))["categories"]]

    def texts(self) -> dict[Path, bytes]:
        """The content of each file, as `write` writes it."""
        return {file: json.dumps(self.contents[split]).encode() for split, file in self.files.items()}

    def write(self) -> None:
        """Write the files that are not there with this content already."""
        for path, text in self.texts().items():
            write_if_changed(path, text)

    def table(self) -> str:
        """Counts by split and class, and problems by kind."""
        names = {c["id"]: c["name"] for c in next(iter(self.contents.values()))["categories"]}
        rows = []
        for content in self.contents.values():
            boxes = [a for a in content["annotations"] if not a["iscrowd"]]
            empty = len(content["images"]) - len({a["image_id"] for a in content["annotations"]})
            by_class = Counter(names[a["category_id"]] for a in boxes)
            ignored = len(content["annotations"]) - len(boxes)
            rows.append([len(content["images"]), empty, len(boxes), ignored, *(by_class[n] for n in names.values())])
        header = ["images", "without objects", "objects", "ignored", *(f"  {name}" for name in names.values())]
        table = [[name, *values] for name, values in zip(header, zip(*rows, strict=True), strict=True)]
        parts = [tabulate(table, ["", *self.contents], disable_numparse=True)]
        if counts := self.problems.counts:
            parts.append(tabulate(counts.items(), ["problem", "times"], disable_numparse=True))
        parts += [f'The split "{split}" is not used: {plural(count, "image")}' for split, count in self.unused.items()]
        return "\n\n".join(parts)

    def summary(self) -> str:
        """The table, and the lines that register the dataset in a config."""
        lines = [
            f"register_coco({_name_of(file)!r}, {file.as_posix()!r}, {self.image_root.as_posix()!r})"
            for file in self.files.values()
        ]
        return "\n".join([self.table(), "", f"For a config, with model.num_classes = {len(self.classes)}:", *lines])


def _name_of(file: Path) -> str:
    return f"{own_prefix(file.absolute().parent.name)}_{file.stem}"


def convert_dataset(
    source: str | Path,
    output: str | Path,
    *,
    format: str | None = None,
    classes: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    difficult: str = "ignore",
    zero_based: bool = False,
    two_parts: bool = False,
    copy_images: bool = False,
    decode: bool = True,
    force: bool = False,
    write: bool = True,
) -> Conversion:
    """Write `<output>/<split>.json` for each split of a dataset, which is not changed.

    Mistakes of the dataset are corrected or left out, and listed in `Conversion.problems`.

    Args:
        source: the dataset's folder, or one annotation file, such as YOLO's data.yaml or a file of COCO's annotations.
        output: the folder to write.
        format: a name in `formats.FORMATS`; None to recognise it.
        classes: class names in the order of their ids; objects of other classes are left out. Without it, the classes
            are those that occur, of COCO by id, of other layouts by name. For YOLO, they replace those in data.yaml.
        only: of these classes, keep some, in this order; objects of the others are left out.
        difficult, zero_based: of VOC, see `read_voc`.
        two_parts: write train.json and val.json alone, see `train_and_val`.
        copy_images: copy the images to `<output>/images`; otherwise the annotations refer to them where they are.
        decode: decode all pixels, as training does; otherwise read only the size.
        force: replace existing annotation files.
        write: False leaves it to `Conversion.write`.

    Raises:
        FileNotFoundError: no such folder.
        FileExistsError: an annotation file exists, and `force` is false.
        ValueError: the folder has no known layout, nothing in it can be used, `only` names a class that is not there,
            or `output` is the dataset's folder.
    """
    source, output, problems = Path(source), Path(output), Problems()
    check_output(source, output)
    options = ReadOptions(list(dict.fromkeys(classes)) if classes else None, difficult, zero_based, decode)
    dataset, names = _read_dataset(source, format, options, only, problems)
    splits = _usable_splits(dataset.splits, names, source, problems)
    unused = {}
    if two_parts:
        found, splits = splits, train_and_val(splits)
        used = {p.path for images in splits.values() for p in images}
        unused = {split: len(images) for split, images in found.items() if used.isdisjoint(p.path for p in images)}
    files = _output_files(output, splits, force)
    root = dataset.image_root
    file_names = _file_names({p.path for images in splits.values() for p in images}, root)
    if copy_images:
        root = output / "images"
        file_names = _copy_images(file_names, root)
    contents = {split: to_coco(images, names, file_names) for split, images in splits.items()}
    conversion = Conversion(files, contents, root, problems, unused)
    if write:
        conversion.write()
    return conversion


def check_output(source: Path, output: Path) -> None:
    """Raise ValueError if the output is the dataset's folder, which would then have two layouts."""
    folder = source.parent if source.is_file() else source
    if folder.resolve() == output.resolve():
        raise ValueError(f"the output {output} is the dataset's own folder, which is not changed: name another")


def _output_files(output: Path, splits: Iterable[str], force: bool) -> dict[str, Path]:
    """The file of each split; FileExistsError if one is there, and may not be replaced."""
    files = {split: output / f"{split}.json" for split in splits}
    if not force and (taken := [file for file in files.values() if file.exists()]):
        raise FileExistsError(f"{taken[0]} is there already: name another output, or replace it by force=True")
    return files


def _read_dataset(
    source: Path, format: str | None, options: ReadOptions, only: Sequence[str] | None, problems: Problems
) -> tuple[Dataset, list[str]]:
    """Read a dataset, and drop the objects of other classes; returns it and the names of the classes that are left."""
    if not source.exists():
        raise FileNotFoundError(f"no such folder: {source}")
    if options.difficult not in DIFFICULT:
        raise ValueError(f"difficult={options.difficult!r}: choose one of {', '.join(DIFFICULT)}")
    layout, files, place = recognise(source, problems, format)
    dataset = layout.read(files, place, problems, options)
    names = list(dict.fromkeys(options.classes or dataset.classes))
    _drop_others(dataset.splits, names, "unknown class", problems)
    if only:
        if strange := [name for name in only if name not in names]:
            raise ValueError(f"{source} has no class {strange[0]}; it has {', '.join(names)}")
        names = list(dict.fromkeys(only))
        _drop_others(dataset.splits, names, "other class", problems)
    return dataset, names


def _usable_splits(
    splits: dict[str, list[DatasetImage]], names: list[str], source: Path, problems: Problems
) -> dict[str, list[DatasetImage]]:
    """The splits that have images; ValueError if there is no object in any of them."""
    _check_splits(splits, names, problems)
    splits = {split: images for split, images in splits.items() if images}
    if not any(p.boxes for images in splits.values() for p in images):
        kind, count = next(iter(problems.counts.items()), ("", 0))
        what = f"no objects in {source}" if splits else f"no images with annotations in {source}"
        first = f"; {problems.report()[0]} ({kind}: {count})" if kind else ""
        raise ValueError(f"{what} that could be used{_images_above(source)}{first}")
    return splits


def _images_above(source: Path) -> str:
    """A hint, for a folder of annotations alone, that the folder above it also has images; "" if it has none."""
    if not source.is_dir() or next(image_files(source), None):
        return ""
    above = source.parent if len(source.parts) > 1 else source.absolute().parent
    suffixes = image_suffixes()
    beside = islice(chain(above.glob("*"), above.glob("*/*")), MOST_LOOKED_AT)  # it may be a whole disk
    if not any(path.suffix.lower() in suffixes for path in beside):
        return ""
    return f": it has no images, but the folder above has some, so give {above}"


def _copy_images(file_names: Mapping[Path, str], folder: Path) -> dict[Path, str]:
    """Copy images to `folder`, and return their names below it."""
    names = {path: _below(name) for path, name in file_names.items()}
    for path, name in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return names


def train_and_val(splits: Mapping[str, list[DatasetImage]]) -> dict[str, list[DatasetImage]]:
    """Make the splits "train" and "val" that a training needs.

    If there is no validation split, the test split is used. All images in neither of them are training images. Without
    both, a fifth of the images with objects and a fifth of those without are used for validation. A hash of the file
    name selects them, so that the selection hardly changes when images are added.

    Raises:
        ValueError: there are too few images for two parts.
    """
    val = splits.get("val") or splits.get("test") or []
    in_train = splits.get("train") or []
    known = {p.path for split in ("train", "val", "test") for p in splits.get(split, [])}
    rest = {p.path: p for images in splits.values() for p in images if p.path not in known}
    train = [*in_train, *rest.values()]
    if not train and val:  # a dataset of one part, whatever it is called
        train, val = val, []
    if not val:
        chosen: set[Path] = set()
        for group in ([p for p in train if p.boxes], [p for p in train if not p.boxes]):
            count = max(round(VALIDATION * len(group)), 1 if any(p.boxes for p in group) else 0)
            chosen |= {p.path for p in sorted(group, key=lambda p: _hash(p.path.name))[:count]}
        train, val = [p for p in train if p.path not in chosen], [p for p in train if p.path in chosen]
    for name, part in {"train on": train, "validate on": val}.items():
        if not any(not box.ignored for p in part for box in p.boxes):
            counts = f"{plural(len(train), 'image')} to train on, {len(val)} to validate"
            raise ValueError(f"there are no objects to {name}: {counts}")
    return {"train": train, "val": val}


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def to_coco(images: Sequence[DatasetImage], classes: Sequence[str], file_names: dict[Path, str]) -> dict:
    """The content of a COCO annotation file; ids count from 1, and boxes to ignore are crowds."""
    ids = {name: number for number, name in enumerate(classes, 1)}
    entries, annotations = [], []
    for image_id, image in enumerate(images, 1):
        name = file_names[image.path]
        entries.append({"id": image_id, "file_name": name, "width": image.width, "height": image.height})
        for box in image.boxes:
            left, top, right, bottom = box.corners
            width, height = round(right - left, 3), round(bottom - top, 3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[box.label],
                    "bbox": [left, top, width, height],
                    "area": round(width * height, 3),
                    "iscrowd": int(box.ignored),
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _drop_others(splits: dict[str, list[DatasetImage]], classes: list[str], kind: str, problems: Problems) -> None:
    known = set(classes)
    for image in {id(p): p for images in splits.values() for p in images}.values():
        for box in image.boxes:
            if box.label not in known:
                problems.add(kind, f"{image.path.name}: {box.label} is not in --classes: left out")
        image.boxes = [box for box in image.boxes if box.label in known]


def _check_splits(splits: dict[str, list[DatasetImage]], classes: list[str], problems: Problems) -> None:
    """Report what is often a mistake: empty splits, shared images, classes that differ in case only."""
    for split, images in splits.items():
        if not images:
            problems.add("split without images", f"{split}: not written")
    for one, other in combinations(splits, 2):
        if {one, other} <= {"train", "val", "trainval"} and "trainval" in (one, other):
            continue
        paths = {image.path for image in splits[one]}
        if shared := [p.path.name for p in splits[other] if p.path in paths]:
            line = f"{plural(len(shared), 'image')} of {other} in {one} too, such as {shared[0]}"
            problems.add("images in two splits", line)
    for one, other in combinations(classes, 2):
        if one.lower() == other.lower():
            problems.add("classes that differ in case", f"{one} and {other}: taken as two")


def _file_names(paths: set[Path], root: Path) -> dict[Path, str]:
    """Names below `root`; whole paths of images that lie elsewhere."""
    inside = {path: path.is_relative_to(root) for path in paths}
    return {
        path: path.relative_to(root).as_posix() if inside[path] else Path(os.path.abspath(path)).as_posix()
        for path in paths
    }


def _below(name: str) -> str:
    """Name of the copy of an image, which may lie outside the dataset's folder."""
    return Path(name).relative_to(Path(name).anchor).as_posix()
