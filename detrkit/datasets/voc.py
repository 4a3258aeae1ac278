"""Pascal VOC's layout and annotation files (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf)."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from .pictures import (
    ALL,
    IMAGE_SUFFIXES,
    Box,
    Corners,
    ImageFile,
    Picture,
    Problems,
    add_box,
    image_files,
    look_at_all,
    read_text,
    relative,
    to_upright,
)

SPLITS = ("train", "val", "trainval", "test")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
DIFFICULT = ("ignore", "keep", "drop")


def find_voc(folder: Path) -> Path | None:
    """The folder itself or one below it that has VOC's layout, or else XML files beside images; None if there is none.

    Raises:
        ValueError: several below it have.
    """
    below = _folders(folder)
    places = [folder, *below, *(place for parent in below for place in _folders(parent))]
    with_layout = [place for place in places if (place / "Annotations").is_dir()]
    if folder in with_layout:
        return folder
    if len(with_layout) > 1:
        raise ValueError(f"{folder} holds several VOC folders: name one of {', '.join(map(str, with_layout[:5]))}")
    if with_layout:
        return with_layout[0]
    return folder if any(next(place.glob("*.xml"), None) for place in places) else None


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())


def read_voc(
    root: Path, problems: Problems, *, difficult: str = "ignore", zero_based: bool = False, decode: bool = True
) -> tuple[dict[str, list[Picture]], Path]:
    """Reads a VOC folder.

    Splits are the lists in ImageSets/Main; without them everything is one split, "all". Where XML files lie beside the
    images, each folder is a split.

    Args:
        root: what `find_voc` gave.
        difficult: what becomes of objects that are marked so: "ignore" keeps them for the evaluation not to count,
            as VOC's does, and training does not see them; "keep" makes them objects as all others; "drop" leaves them
            out, so that to find them is an error.
        zero_based: VOC counts pixels from 1 and the last one in, so that a box reaches from xmin - 1 to xmax. With
            this, coordinates are taken as they are, as of tools that count from 0.
        decode: see `look_at`.

    Returns:
        Pictures by split, and the folder of the images.
    """
    annotations = root / "Annotations"
    if annotations.is_dir():
        images = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root)
        splits = _splits_of_lists(root / "ImageSets" / "Main", root, problems)
        names = _names(annotations)
        if not splits:
            splits = {ALL: names}
        elif unlisted := sorted(set(names).difference(*splits.values())):
            line = f"{len(unlisted)} annotation files, such as {unlisted[0]}.xml: left out"
            problems.add("annotations in no list", line)
    else:
        annotations = images = root
        splits = _splits_of_folders(root)

    files = _by_name(images, by_stem=images == root != annotations)
    listed = dict.fromkeys(name for names in splits.values() for name in names)
    if ALL in splits or annotations == images:
        for name in sorted(files.keys() - listed.keys()):
            problems.add("image without annotation", f"{relative(files[name][0], root)}: left out")
    elements: dict[str, Element] = {}
    chosen: dict[str, Path] = {}
    owners: dict[Path, str] = {}
    for name in sorted(listed, key=lambda name: name not in files):  # files that state another name come last
        xml = annotations / f"{name}.xml"
        try:
            elements[name] = parse_xml(xml.read_bytes())
        except FileNotFoundError:
            problems.add("missing annotation file", f"{relative(xml, root)}: image left out")
            continue
        except (OSError, ValueError) as error:
            problems.add("broken annotation file", f"{relative(xml, root)}: {error}: image left out")
            continue
        path = _image_of(name, elements[name], files, xml, root, problems)
        if path in owners:
            first = relative(annotations / f"{owners[path]}.xml", root)
            problems.add("image annotated twice", f"{relative(xml, root)}: {first} is of the same image: left out")
        elif path is not None:
            chosen[name], owners[path] = path, name

    looked = look_at_all(chosen.values(), decode)
    pictures: dict[str, Picture] = {}
    for name, path in chosen.items():
        if looked[path].error:
            problems.add("broken image", f"{relative(path, root)}: {looked[path].error}: left out")
            continue
        xml = relative(annotations / f"{name}.xml", root)
        pictures[name] = _picture(path, looked[path], elements[name], xml, problems, difficult, zero_based)
    return {split: [pictures[n] for n in names if n in pictures] for split, names in splits.items()}, images


def parse_xml(data: bytes) -> Element:
    """The root element of an XML document without a DTD, which could make a small file fill the memory.

    Raises:
        ValueError: anything else.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_):
        raise ValueError("it declares a document type, which annotation files do not need: refused")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(f"not XML: {error}") from error
    return builder.close()


def _names(folder: Path) -> list[str]:
    """The XML files of a folder and those below it, as paths without suffix."""
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.xml"))


def _by_name(folder: Path, by_stem: bool) -> dict[str, list[Path]]:
    """Images by their path without suffix, or by its last part where their folder is not one of the usual."""
    files = defaultdict(list)
    for path in image_files(folder):
        files[path.stem if by_stem else path.relative_to(folder).with_suffix("").as_posix()].append(path)
    return dict(files)


def _splits_of_folders(root: Path) -> dict[str, list[str]]:
    splits = defaultdict(list)
    for name in _names(root):
        folder, _, rest = name.rpartition("/")
        splits[folder.partition("/")[0] or ALL].append(name)
    return dict(splits)


def _splits_of_lists(folder: Path, root: Path, problems: Problems) -> dict[str, list[str]]:
    """The lists of ImageSets/Main; where the standard ones are, the others are lists of a class."""
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
            # A name, and in lists of a class whether it is there; names with spaces do occur.
            if len(words) > 1 and words[-1] in ("1", "0", "-1"):
                words = words[:-1]
            if not words:
                continue
            path = Path(" ".join(words))
            has_suffix = path.suffix.lower() in IMAGE_SUFFIXES | {".xml"}
            name = (path.with_suffix("") if has_suffix else path).as_posix()
            if name in names:
                problems.add("name given twice", f"{where}: {name}: kept once")
            elif path.is_absolute() or ".." in path.parts or "\0" in name:
                problems.add("name outside the folder", f"{where}: {name}: left out")
            else:
                names[name] = None
        splits[split] = list(names)
    return splits


def _image_of(
    name: str, element: Element, files: dict[str, list[Path]], xml: Path, root: Path, problems: Problems
) -> Path | None:
    """The image of an annotation file: the one of its name, else the one that it names."""
    stated = Path((element.findtext("filename") or "").strip().replace("\\", "/")).name
    found = files.get(name)
    if not found:
        parent = name.rpartition("/")[0]
        stem = Path(stated).stem
        found = files.get(f"{parent}/{stem}" if parent else stem) if stem else None
    if not found:
        wanted = f"{name} or {stated}" if stated else name
        problems.add("missing image", f"{relative(xml, root)}: there is no image {wanted}: left out")
        return None
    if len(found) > 1:
        found = [path for path in found if path.name == stated] or found
        problems.add("several images of one name", f"{relative(xml, root)}: {relative(found[0], root)} is taken")
    return found[0]


def _picture(
    path: Path, file: ImageFile, element: Element, xml: str, problems: Problems, difficult: str, zero_based: bool
) -> Picture:
    picture = Picture(path, file.width, file.height)
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
        add_box(picture, Box(label, to_image(corners), ignored), where, problems)
    return picture


def _to_edges(corners: Corners, zero_based: bool, where: str, problems: Problems) -> Corners:
    left, top, right, bottom = corners
    if zero_based or right <= left or bottom <= top:  # one pixel wide, if at all: a slip of the mouse
        return corners
    if 0 in (left, top):
        problems.add("coordinate 0, though VOC counts from 1", f"{where}: --zero-based, if all count from 0")
    return left - 1, top - 1, right, bottom


def _number(element: Element, path: str) -> float | None:
    try:
        return float(element.findtext(path) or "")
    except ValueError:
        return None
