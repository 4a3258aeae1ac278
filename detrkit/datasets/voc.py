"""Pascal VOC's layout and annotation files (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from .dataset_images import (
    ALL,
    Box,
    Corners,
    DatasetImage,
    ImageFile,
    Problems,
    add_box,
    inspect_images,
    read_text,
    relative,
    to_upright,
)
from .files import IMAGE_FOLDERS, DatasetFiles, split_of_folders
from .images import image_suffixes
from .reading import Dataset, Format, ReadOptions, report_unannotated
from .xml_files import parse_xml, root_tag

SPLITS = ("train", "val", "trainval", "test")
LISTS = "imagesets"
DIFFICULT = ("ignore", "keep", "drop")
ROOT = "annotation"


def find_voc(files: DatasetFiles) -> Path | None:
    """The folder with VOC's lists, or without lists the whole folder, if it has XML files of annotations.

    Raises:
        ValueError: several folders have lists.
    """
    with_lists = _folders_with_lists(files)
    if files.root not in with_lists and len(with_lists) > 1:
        raise ValueError(f"{files.root} holds several VOC folders: name one of {', '.join(map(str, with_lists[:5]))}")
    if not any(root_tag(path) == ROOT for path in files.sample(".xml")):
        return None
    return files.root if files.root in with_lists or not with_lists else with_lists[0]


def guess_voc(files: DatasetFiles) -> Path | None:
    """The folder, if it has XML files that cannot be read."""
    return files.root if any(root_tag(path) is None for path in files.sample(".xml")) else None


def read_voc(files: DatasetFiles, root: Path, problems: Problems, options: ReadOptions) -> Dataset:
    """Read XML files and the images of the same names, anywhere in the folder.

    Splits are the lists in ImageSets/Main, else folders named train, val, test and the like. Other images form the
    split "all". Classes are those that occur, by name.

    Args:
        root: what `find_voc` returned.
        options: `difficult`, for objects marked so: "ignore" does not train on them and does not count them in the
            evaluation, as VOC does; "keep" treats them like other objects; "drop" leaves them out, so that detecting
            them is an error. `zero_based`: take coordinates unchanged. By default pixels count from 1, as in VOC, so a
            box reaches from xmin - 1 to xmax.
    """
    files = files if root == files.root else DatasetFiles(root)
    annotations = [path for path in files.annotation_files(".xml") if root_tag(path) in (ROOT, None)]
    splits = _splits_of_lists(_list_folder(files), root, problems)
    listed = _listed_annotations(splits, annotations, root, problems) if splits else {}
    to_read = dict.fromkeys(path for paths in listed.values() for path in paths) if splits else annotations

    elements = _parse_all(to_read, root, problems)
    chosen: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    # Files that state the name of another image come last.
    for xml in sorted(elements, key=lambda xml: not files.by_stem(xml.stem, xml.parent)):
        path = _image_of(xml, elements[xml], files, problems)
        if path in owners:
            first = relative(owners[path], root)
            problems.add("image annotated twice", f"{relative(xml, root)}: {first} is of the same image: left out")
        elif path is not None:
            chosen[xml], owners[path] = path, xml
    if not splits:
        report_unannotated(files, {*owners, *annotations}, problems)
        listed = defaultdict(list)
        for xml in (xml for xml in annotations if xml in chosen):
            split = split_of_folders(xml, root)
            listed[split if split != ALL else split_of_folders(chosen[xml], root)].append(xml)

    image_files = inspect_images(chosen.values(), options.decode)
    images: dict[Path, DatasetImage] = {}
    for xml, path in chosen.items():
        if image_files[path].error:
            problems.add(image_files[path].kind, f"{relative(path, root)}: {image_files[path].error}: left out")
            continue
        where = relative(xml, root)
        images[xml] = _read_image(
            path, image_files[path], elements[xml], where, problems, options.difficult, options.zero_based
        )
    parts = {split: [images[xml] for xml in paths if xml in images] for split, paths in listed.items()}
    classes = sorted({box.label for image in images.values() for box in image.boxes})
    return Dataset(parts, _image_root(root, list(owners)), classes)


def _folders_with_lists(files: DatasetFiles) -> list[Path]:
    found = {
        folder.parent
        for path in files.paths
        if path.suffix == ".txt"
        for folder in path.parents
        if folder.name.lower() == LISTS and folder.is_relative_to(files.root)
    }
    return sorted(found)


def _list_folder(files: DatasetFiles) -> Path | None:
    """The folder of the lists of images: ImageSets/Main, or ImageSets itself."""
    folders = {path.parent for path in files.paths if path.suffix == ".txt"}
    names = {folder.relative_to(files.root).as_posix().lower(): folder for folder in folders}
    return names.get(f"{LISTS}/main") or names.get(LISTS)


def _parse_all(annotations: Iterable[Path], root: Path, problems: Problems) -> dict[Path, Element]:
    """The root elements of the annotation files that can be read."""
    elements = {}
    for xml in annotations:
        try:
            element = parse_xml(xml.read_bytes())
        except (OSError, ValueError) as error:
            problems.add("broken annotation file", f"{relative(xml, root)}: {error}: image left out")
            continue
        elements[xml] = element
    return elements


def _listed_annotations(
    splits: Mapping[str, Sequence[str]], annotations: Sequence[Path], root: Path, problems: Problems
) -> dict[str, list[Path]]:
    """The annotation files of the names in lists."""
    by_stem = defaultdict(list)
    for path in annotations:
        by_stem[path.stem].append(path)
    listed: dict[str, list[Path]] = {}
    missing: set[str] = set()
    for split, names in splits.items():
        listed[split] = []
        for name in names:
            parts = Path(f"{name}.xml").parts
            found = [path for path in by_stem[Path(f"{name}.xml").stem] if path.parts[-len(parts) :] == parts]
            if found:
                listed[split].append(min(found, key=lambda path: len(path.parts)))
            elif name not in missing:
                missing.add(name)
                problems.add("missing annotation file", f"{name}.xml: image left out")
    used = {path for paths in listed.values() for path in paths}
    if unlisted := [path for path in annotations if path not in used]:
        line = f"{len(unlisted)} annotation files, such as {unlisted[0].name}: left out"
        problems.add("annotations in no list", line)
    return listed


def _splits_of_lists(folder: Path | None, root: Path, problems: Problems) -> dict[str, list[str]]:
    """The lists in a folder; if it has the standard ones, the others are lists of single classes."""
    if folder is None:
        return {}
    lists = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    standard = [name for name in SPLITS if name in lists]
    splits = {}
    for split in standard or list(lists):
        where = relative(lists[split], root)
        try:
            lines = [line.split() for line in read_text(lists[split]).splitlines()]
        except (OSError, ValueError) as error:
            problems.add("broken list", f"{where}: {error}: left out")
            continue
        names: dict[str, None] = {}
        for words in lines:
            # A name, which may contain spaces. In lists of a class, 1, 0 or -1 follows.
            if len(words) > 1 and words[-1] in ("1", "0", "-1"):
                words = words[:-1]
            if not words:
                continue
            path = Path(" ".join(words))
            has_suffix = path.suffix.lower() in image_suffixes() | {".xml"}
            name = (path.with_suffix("") if has_suffix else path).as_posix()
            if name in names:
                problems.add("name given twice", f"{where}: {name}: kept once")
            elif path.is_absolute() or ".." in path.parts or "\0" in name:
                problems.add("name outside the folder", f"{where}: {name}: left out")
            else:
                names[name] = None
        splits[split] = list(names)
    return splits


def _image_of(xml: Path, element: Element, files: DatasetFiles, problems: Problems) -> Path | None:
    """The image of an annotation file: the one with the same name, else the one named in the file."""
    stated = Path((element.findtext("filename") or "").strip().replace("\\", "/")).name
    stem = xml.stem
    if Path(stem).suffix.lower() in image_suffixes():  # of a.jpg.xml
        stem = Path(stem).stem
    for name in filter(None, (xml.stem, stem, Path(stated).stem)):
        if found := files.by_stem(name, xml.parent, stated):
            break
    else:
        expected = f"{xml.stem} or {stated}" if stated else xml.stem
        problems.add("missing image", f"{relative(xml, files.root)}: there is no image {expected}: left out")
        return None
    if len(found) > 1:
        line = f"{relative(xml, files.root)}: {relative(found[0], files.root)} is taken"
        problems.add("several images of one name", line)
    return found[0]


def _image_root(root: Path, images: Sequence[Path]) -> Path:
    """The folder of the images, if all are in one with a usual name, such as JPEGImages; else the root."""
    first = {path.relative_to(root).parts[0] for path in images if path.is_relative_to(root)}
    name = first.pop() if len(first) == 1 else ""
    return root / name if name.lower() in IMAGE_FOLDERS and (root / name).is_dir() else root


def _read_image(
    path: Path, file: ImageFile, element: Element, xml: str, problems: Problems, difficult: str, zero_based: bool
) -> DatasetImage:
    image = DatasetImage(path, file.width, file.height)
    width, height = (_number(element, f"size/{side}") for side in ("width", "height"))
    is_stated = None not in (width, height) and min(width, height) > 0
    to_image = to_upright(file, (width, height) if is_stated else None, xml, problems)

    for number, obj in enumerate(element.iter("object"), 1):
        label = " ".join((obj.findtext("name") or "").split())
        where = f"{xml}, object {number} ({label or 'no name'})"
        if not label:
            problems.add("object without a class", f"{where}: left out")
            continue
        ignored = False
        if (obj.findtext("difficult") or "").strip().lower() in ("1", "true", "yes") and difficult != "keep":
            ignored = True
            becomes = "not trained on, ignored in evaluation" if difficult == "ignore" else "left out"
            problems.add("difficult object", f"{where}: {becomes}")
            if difficult == "drop":
                continue
        corners = tuple(_number(obj, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
        if None in corners:
            problems.add("object without a box", f"{where}: xmin, ymin, xmax, ymax are not four numbers: left out")
            continue
        corners = _to_edges(corners, zero_based, where, problems)
        add_box(image, Box(label, to_image(corners), ignored), where, problems)
    return image


def _to_edges(corners: Corners, zero_based: bool, where: str, problems: Problems) -> Corners:
    left, top, right, bottom = corners
    if zero_based or right <= left or bottom <= top:  # at most one pixel wide: an accidental click
        return corners
    if 0 in (left, top):
        problems.add("coordinate 0, though VOC counts from 1", f"{where}: --zero-based, if all count from 0")
    return left - 1, top - 1, right, bottom


def _number(element: Element, path: str) -> float | None:
    try:
        return float(element.findtext(path) or "")
    except ValueError:
        return None


VOC = Format("voc", "VOC", "XML files of annotations", find_voc, read_voc, guess_voc)
