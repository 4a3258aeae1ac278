"""Pascal VOC, YOLO and COCO datasets to what training takes: every layout, and every kind of damage."""

import json
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detrkit.datasets import convert_dataset, register_coco
from detrkit.datasets.convert import train_and_val
from detrkit.datasets.dataset_images import LINES_PER_KIND, Box, DatasetImage, Problems, turn

SIZE = (40, 30)
ORIENTATION = 0x0112


def voc_object(name="cat", box=(5, 6, 20, 25), difficult=0):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def voc_file(*objects, filename="a.jpg", size=SIZE):
    width, height = size
    return (
        f"<annotation><filename>{filename}</filename><size><width>{width}</width><height>{height}</height></size>"
        f"{''.join(objects)}</annotation>"
    )


def image(path, size=SIZE, orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, "green")
    exif = picture.getexif()
    if orientation:
        exif[ORIENTATION] = orientation
    picture.save(path, exif=exif)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def voc(root, files, splits=None, suffix=".jpg"):
    for name, text in files.items():
        image(root / "JPEGImages" / f"{name}{suffix}")
        write(root / "Annotations" / f"{name}.xml", text)
    for split, names in (splits or {}).items():
        write(root / "ImageSets/Main" / f"{split}.txt", "\n".join(names) + "\n")
    return root


def yolo(root, files, yaml="train: images/train\nnames: [cat, dog]\n", split="train"):
    for name, text in files.items():
        image(root / "images" / split / f"{name}.jpg")
        if text is not None:
            write(root / "labels" / split / f"{name}.txt", text)
    write(root / "data.yaml", yaml)
    return root


def boxes(conversion, split):
    """[(file, class, box, iscrowd)] of a split, as the training reads them."""
    content = json.loads(conversion.files[split].read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: i["file_name"] for i in content["images"]}
    return [
        (files[a["image_id"]], names[a["category_id"]], a["bbox"], a["iscrowd"]) for a in content["annotations"]
    ]


@pytest.fixture
def convert(tmp_path):
    """`convert(source, **options)` to a folder of its own."""
    return lambda source, **options: convert_dataset(source, tmp_path / "out", force=True, **options)


def test_voc_with_lists(tmp_path, convert):
    """Protects VOC's own layout: its splits, not its lists of a class; pixels that count from 1; images referred to."""
    splits = {"train": ["a"], "val": ["b", "c"], "trainval": ["a", "b", "c"], "cat_train": ["a 1", "b -1"]}
    files = {"a": voc_file(voc_object(box=(1, 1, 40, 30))), "b": voc_file(voc_object("dog")), "c": voc_file()}
    found = convert(voc(tmp_path / "VOCdevkit/VOC2007", files, splits))
    assert list(found.files) == ["train", "val", "trainval"] and found.classes == ["cat", "dog"]
    assert boxes(found, "train") == [("a.jpg", "cat", [0, 0, 40, 30], 0)]
    assert boxes(found, "val") == [("b.jpg", "dog", [4, 5, 16, 20], 0)]
    assert [i["file_name"] for i in found.contents["val"]["images"]] == ["b.jpg", "c.jpg"]
    assert found.image_root == tmp_path / "VOCdevkit/VOC2007/JPEGImages" and not found.problems.counts
    assert convert(tmp_path / "VOCdevkit").contents == found.contents, "the folder above it"
    as_written = convert(tmp_path / "VOCdevkit", zero_based=True)
    assert boxes(as_written, "val") == [("b.jpg", "dog", [5, 6, 15, 19], 0)]


def test_voc_without_lists(tmp_path, convert):
    """Protects folders without ImageSets, and those that have XML files beside the images, split by folder."""
    root = voc(tmp_path / "plain", {"a": voc_file(voc_object()), "b": voc_file()})
    found = convert(root)
    assert list(found.files) == ["all"] and len(found.contents["all"]["images"]) == 2
    (root / "JPEGImages").rename(root / "scans")
    assert boxes(convert(root), "all") == [("scans/a.jpg", *found_box) for _, *found_box in boxes(found, "all")]
    for split in ("train", "test"):
        image(tmp_path / "flat" / split / "a.png")
        write(tmp_path / "flat" / split / "a.xml", voc_file(voc_object(split)))
    found = convert(tmp_path / "flat")
    assert boxes(found, "test") == [("test/a.png", "test", [4, 5, 16, 20], 0)]
    assert found.classes == ["test", "train"] and list(found.files) == ["test", "train"]


@pytest.mark.parametrize(
    "way, crowds", [("ignore", [0, 1]), ("keep", [0, 0]), ("drop", [0])], ids=["ignore", "keep", "drop"]
)
def test_difficult_objects(tmp_path, convert, way, crowds):
    """Protects the choice of what becomes of them, and that it is told."""
    found = convert(voc(tmp_path / "v", {"a": voc_file(voc_object(), voc_object("dog", difficult=1))}), difficult=way)
    assert [crowd for *_, crowd in boxes(found, "all")] == crowds
    assert found.problems.counts == ({} if way == "keep" else {"difficult object": 1})
    assert ("dog" in found.classes) == (way != "drop")


VOC_DAMAGE = {
    "box without area": voc_object(box=(9, 6, 9, 20)),
    "box outside the image": voc_object(box=(50, 6, 60, 20)),
    "box that is no box": voc_object(box=("nan", 6, 9, 20)),
    "object without a box": voc_object(box=("", "x", 9, 20)),
    "object without a class": voc_object(name=" "),
    "unknown class": voc_object(name="unicorn"),
    "object given twice": voc_object("dog"),
}


@pytest.mark.parametrize("kind", VOC_DAMAGE)
def test_voc_objects_that_are_left_out(tmp_path, convert, kind):
    """Protects the rest of the dataset from an object that is no object, and the user from not hearing of it."""
    root = voc(tmp_path / "v", {"a": voc_file(voc_object("dog"), VOC_DAMAGE[kind]), "b": voc_file(voc_object())})
    found = convert(root, classes=["cat", "dog"])
    assert [name for _, name, *_ in boxes(found, "all")] == ["dog", "cat"]
    assert found.problems.counts == {kind: 1}
    (line,) = found.problems.report()
    assert line.startswith(f"{kind}: ") and "left out" in line or "kept once" in line


def test_boxes_over_the_border_are_clipped(tmp_path, convert):
    """Protects boxes that reach out of the image; one pixel is rounding, and no problem."""
    files = {"a": voc_file(voc_object(box=(-20, 6, 60, 20)), voc_object("dog", box=(0.5, 1, 40.9, 31)))}
    found = convert(voc(tmp_path / "v", files))
    assert [box for _, _, box, _ in boxes(found, "all")] == [[0, 5, 40, 15], [0, 0, 40, 30]]
    assert found.problems.counts == {"box partly outside the image": 1}


def test_voc_files_that_are_left_out(tmp_path, convert):
    """Protects from files that are missing or broken on either side, and names given twice: a line each."""
    root = voc(
        tmp_path / "v",
        {
            "a": voc_file(voc_object()), "b": "<annotation><object>", "c": voc_file(filename="gone.jpg"),
            "d": voc_file(), "e": voc_file(), "unlisted": voc_file(),
            "0": voc_file(filename="a.jpg"), "1": voc_file(filename="f.jpg"),
        },
        {"train": ["0", "1", "a", "a", "b", "c", "d", "nowhere", "../../etc/passwd"], "val": ["e.jpg", "a"]},
    )  # fmt: skip
    for name in "c01":
        (root / f"JPEGImages/{name}.jpg").unlink()
    image(root / "JPEGImages/f.jpg")
    write(root / "JPEGImages/d.jpg", (root / "JPEGImages/a.jpg").read_bytes()[:200])
    image(root / "JPEGImages/e.png")
    found = convert(root)
    assert [i["file_name"] for i in found.contents["train"]["images"]] == ["f.jpg", "a.jpg"]
    assert [i["file_name"] for i in found.contents["val"]["images"]] == ["e.jpg", "a.jpg"]
    assert found.problems.counts == {
        "name given twice": 1,
        "name outside the folder": 1,
        "annotations in no list": 1,
        "broken annotation file": 1,
        "missing annotation file": 1,
        "missing image": 1,
        "image annotated twice": 1,
        "broken image": 1,
        "several images of one name": 1,
        "images in two splits": 1,
    }
    assert all("\n" not in line for line in found.problems.report())


def test_xml_that_would_fill_the_memory_is_refused(tmp_path, convert):
    """Protects from entities that expand to gigabytes, and from those that read other files, in any encoding."""
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b SYSTEM "file:///etc/passwd">]>' + voc_file(voc_object("&a;&b;"))
    utf16 = f'<?xml version="1.0" encoding="utf-16"?>{bomb}'.encode("utf-16")
    found = convert(voc(tmp_path / "v", {"a": bomb, "b": utf16, "c": voc_file(voc_object())}))
    assert len(boxes(found, "all")) == 1 and found.problems.counts == {"broken annotation file": 2}
    assert all("declares a document type" in line for line in found.problems.report())


@pytest.mark.parametrize(
    "orientation, upright", [*((i, True) for i in range(1, 9)), *((i, False) for i in range(5, 9))]
)
def test_turned_images(tmp_path, convert, orientation, upright):
    """Protects boxes on photographs that a camera has turned: on the pixels that training sees, whichever way the
    annotation tool showed them, as far as the image's size tells."""
    root = voc(tmp_path / "v", {"a": voc_file(size=SIZE)})
    picture = Image.new("RGB", SIZE, "black")
    picture.paste("white", (4, 5, 20, 25))
    exif = picture.getexif()
    exif[ORIENTATION] = orientation
    picture.save(root / "JPEGImages/a.png", exif=exif)
    (root / "JPEGImages/a.jpg").unlink()
    seen = read_image(str(root / "JPEGImages/a.png"), "RGB")[..., 0] > 128
    rows, columns = seen.any(1).nonzero()[0], seen.any(0).nonzero()[0]
    expected = [columns[0], rows[0], len(columns), len(rows)]
    x, y, w, h = expected
    box, size = ((x + 1, y + 1, x + w, y + h), seen.shape[::-1]) if upright else ((5, 6, 20, 25), SIZE)
    write(root / "Annotations/a.xml", voc_file(voc_object(box=box), filename="a.png", size=size))
    found = convert(root)
    assert boxes(found, "all")[0][2] == expected
    (entry,) = found.contents["all"]["images"]
    assert (entry["width"], entry["height"]) == seen.shape[::-1]
    assert len(found.problems.counts) == (not upright)


@given(st.sampled_from([5, 6, 7, 8]), st.lists(st.floats(0, 30), min_size=4, max_size=4))
def test_turning_keeps_size(orientation, values):
    """Protects the turned box: width and height change places, and it lies within the turned image."""
    left, right, top, bottom = *sorted(values[:2]), *sorted(values[2:])
    a, b, c, d = turn((left, top, right, bottom), 40, 30, orientation)
    assert (c - a, d - b) == pytest.approx((bottom - top, right - left), abs=1e-9)
    assert 0 <= a <= c <= 30 and 0 <= b <= d <= 40


@pytest.mark.parametrize(
    "size, box, kind",
    [((80, 60), [2, 2.5, 8, 10], "other image size"), ((50, 30), [4, 5, 16, 20], "other image size"),
     ((0, 0), [4, 5, 16, 20], "no image size"), (("", "x"), [4, 5, 16, 20], "no image size")],
)  # fmt: skip
def test_other_image_size(tmp_path, convert, size, box, kind):
    """Protects boxes of images that were resized after annotation: the image's own size counts, as in training."""
    found = convert(voc(tmp_path / "v", {"a": voc_file(voc_object(), size=size)}))
    assert boxes(found, "all")[0][2] == box and found.problems.counts == {kind: 1}
    assert (found.contents["all"]["images"][0]["width"], found.contents["all"]["images"][0]["height"]) == SIZE


def test_yolo_rows(tmp_path, convert):
    """Protects boxes, polygons, empty and missing label files, and all rows that are neither: left out with a line."""
    odd = ["1 0.5 0.5 0.2", "1 0.5 0.5 0.2 0.2 0.9", "cat 0 0 1 1", "7 0.5 0.5 0.2 0.2", "0.5 0.5 0.5 0.2 0.2",
           "-1 0.5 0.5 0.2 0.2", "0 nan 0.5 0.2 0.2", "0 0.5 0.5 0 0.2", "0 200 150 20 20"]  # fmt: skip
    files = {"a": "0 0.5 0.5 0.5 0.4\n\n1 0.1 0.2 0.5 0.2 0.5 0.6\n", "b": "", "c": None, "d": "\n".join(odd)}
    found = convert(yolo(tmp_path / "y", files))
    assert boxes(found, "train") == [
        ("images/train/a.jpg", "cat", [10, 9, 20, 12], 0),
        ("images/train/a.jpg", "dog", [4, 6, 16, 12], 0),
    ]
    assert len(found.contents["train"]["images"]) == 4 and found.classes == ["cat", "dog"]
    assert found.problems.counts == {
        "row that is no object": 4,
        "unknown class": 3,
        "box without area": 1,
        "box outside the image": 1,
    }


LAYOUTS = {
    "folders": "path: .\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: no\n  1: '1'\n",
    "path elsewhere": "path: /datasets/of/somebody\ntrain: images/train\nval: images/val\nnc: 2\nnames: ['no', 1]\n",
    "one up": "train: ../images/train\nvalid: ../images/val\nnames: [no, 1]\n",
    "lists of files": "train: train.txt\nval: [val.txt]\nnames: [no, 1]\n",
    "absolute": "path: {root}\ntrain: {root}/images/train/\nval:\n- {root}/images/val\nnames: {{0: no, 1: 1}}\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_yolo_descriptions(tmp_path, convert, layout):
    """Protects the ways in which data.yaml says where images are and what classes are called, `no` among them."""
    root = yolo(tmp_path / "y", {"a": "0 0.5 0.5 0.5 0.4"}, LAYOUTS[layout].format(root=tmp_path / "y"))
    yolo(root, {"b": "1 0.5 0.5 0.5 0.4"}, (root / "data.yaml").read_text(), split="val")
    write(root / "train.txt", "./images/train/a.jpg\n")
    write(root / "val.txt", ".\\images\\val\\b.jpg\r\n")
    for source in (root, root / "data.yaml"):
        found = convert(source)
        assert boxes(found, "train") == [("images/train/a.jpg", "no", [10, 9, 20, 12], 0)]
        assert boxes(found, "val") == [("images/val/b.jpg", "1", [10, 9, 20, 12], 0)]
        assert not found.problems.counts


def test_yolo_without_description(tmp_path, convert):
    """Protects folders with a classes.txt, labels beside the images."""
    image(tmp_path / "y/a.JPG")
    write(tmp_path / "y/a.txt", "1 0.5 0.5 0.5 0.4")
    write(tmp_path / "y/classes.txt", "cat\ndog\n")
    found = convert(tmp_path / "y")
    assert boxes(found, "all") == [("a.JPG", "dog", [10, 9, 20, 12], 0)] and not found.problems.counts


def test_yolo_without_names(tmp_path, convert):
    """Protects folders of labels alone: the line says where the names go, and names from elsewhere are taken."""
    image(tmp_path / "y/images/a.jpg")
    write(tmp_path / "y/labels/a.txt", "1 0.5 0.5 0.5 0.4")
    with pytest.raises(ValueError, match=r"without names of their classes: list the names in .*y/classes\.txt, "):
        convert(tmp_path / "y")
    found = convert(tmp_path / "y", classes=["cat", "dog"])
    assert boxes(found, "all") == [("images/a.jpg", "dog", [10, 9, 20, 12], 0)]
    image(tmp_path / "notes/a.jpg")
    write(tmp_path / "notes/a.txt", "2024 12 31 23 59")
    with pytest.raises(ValueError, match="1 image and no annotations"):
        convert(tmp_path / "notes")


@pytest.mark.parametrize("spelling", ["y", "y/../y", "y/classes.txt"])
def test_the_dataset_is_not_its_own_output(tmp_path, spelling):
    """Protects the folder from a second layout, after which it would be ambiguous."""
    image(tmp_path / "y/a.jpg")
    write(tmp_path / "y/a.txt", "1 0.5 0.5 0.5 0.4")
    write(tmp_path / "y/classes.txt", "cat\ndog\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="is the dataset's own folder, which is not changed: name another"):
        convert_dataset(tmp_path / spelling, tmp_path / "y")
    assert sorted(tmp_path.rglob("*")) == before


def test_yolo_files_that_are_missing_or_broken(tmp_path, convert):
    """Protects from labels without image, images that are none, lists with gaps, and splits without labels."""
    yaml = "train: images/train\nval: [images/val, images/more]\ntest: test.txt\nnames: [cat, cat, dog]\nnc: 2\n"
    root = yolo(tmp_path / "y", {"a": "1 0.5 0.5 0.5 0.4", "b": "", "c": b"\xff\xfe\x00"}, yaml)
    write(root / "images/train/b.jpg", "no image")
    write(root / "labels/train/lost.txt", "0 0.5 0.5 0.5 0.4")
    image(root / "images/val/e.jpg")
    write(root / "test.txt", "images/train/a.jpg\nimages/train/a.jpg\nimages/train/gone.jpg\n")
    found = convert(root)
    assert found.classes == ["cat", "dog"] and boxes(found, "train")[0][1] == "cat"
    assert found.problems.counts == {
        "missing split": 1,
        "name given twice": 1,
        "missing image": 2,
        "number of classes": 1,
        "class named twice": 1,
        "broken image": 1,
        "broken label file": 1,
        "no label files": 1,
        "images in two splits": 1,
    }


def test_what_is_no_dataset(tmp_path, convert):
    """Protects from a traceback, or an empty dataset, where there is nothing to convert: one line that says why."""
    for folder in ("empty", "notes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notes/readme.txt").touch()
    both = yolo(voc(tmp_path / "both", {"a": voc_file(voc_object())}), {"a": "0 0.5 0.5 0.5 0.4"})
    sources = {
        tmp_path / "nowhere": "no such folder",
        tmp_path / "empty": "is empty: give a folder of images and annotations",
        tmp_path / "notes": "is in no known layout. COCO: JSON files with images, annotations and categories; VOC: XML",
        both: "looks like VOC .* and YOLO .*: say which by format=voc",
        voc(tmp_path / "nothing", {"a": voc_file()}): "no objects in",
        yolo(tmp_path / "tabs", {"a": ""}, "names: [\n\tcat"): "is not YAML: line 2",
        yolo(tmp_path / "text", {"a": ""}, "hello"): "does not describe a dataset",
        yolo(tmp_path / "nameless", {"a": ""}, "train: images/train"): "names no classes",
        yolo(tmp_path / "gap", {"a": ""}, "names: {1: a, 2: b}"): "not 0 to 1",
        yolo(tmp_path / "lists", {"a": ""}, "names: [[a], b]"): "neither a list",
        voc(tmp_path / "broken", {"a": "<"}): "that could be used; broken annotation file: Annotations/a.xml: not XML",
    }
    for source, message in sources.items():
        with pytest.raises((ValueError, OSError), match=message) as error:
            convert(source)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert len(boxes(convert(both, format="yolo"), "train")) == len(boxes(convert(both, format="voc"), "all")) == 1


def test_annotations_without_their_images_name_the_folder_above(tmp_path, convert, monkeypatch):
    """By the path that was given, or the whole one of a bare name; nothing is proposed where no images are."""
    root = voc(tmp_path / "mine", {"a": voc_file(voc_object())})
    with pytest.raises(ValueError, match=f"it has no images, but the folder above has some, so give {root}; missing"):
        convert(root / "Annotations")
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=f"so give {root}; missing image: a.xml"):
        convert(Path("Annotations"))
    shutil.rmtree(root / "JPEGImages")
    with pytest.raises(ValueError, match="that could be used; missing image: a.xml"):
        convert(root / "Annotations")


def test_output_is_not_lost_and_images_can_come_along(tmp_path):
    """Protects annotation files that are there, and copies of the images that no longer need the source."""
    root = yolo(tmp_path / "y", {"a": "0 0.5 0.5 0.5 0.4"}, "train: list.txt\nnames: [cat]")
    image(tmp_path / "elsewhere/b.jpg")
    write(root / "list.txt", f"images/train/a.jpg\n{tmp_path}/elsewhere/b.jpg\n")
    out = tmp_path / "out"
    write(out / "train.json", "mine")
    with pytest.raises(FileExistsError, match="force=True"):
        convert_dataset(root, out)
    assert (out / "train.json").read_text() == "mine"
    found = convert_dataset(root, out, copy_images=True, force=True)
    shutil.rmtree(root), shutil.rmtree(tmp_path / "elsewhere")
    entries = loaded(found.files["train"], found.image_root)
    assert len(entries) == 2 and all(Path(entry["file_name"]).is_file() for entry in entries)


def test_the_report_is_bounded_and_printable():
    """Protects the terminal from a thousand lines, or from what a broken file may hold."""
    problems = Problems()
    for i in range(1000):
        problems.add("broken", f"file {i}\n\x1b[31m" + "x" * 1000)
    report = problems.report()
    assert len(report) == LINES_PER_KIND + 1 and report[-1] == f"broken: {1000 - LINES_PER_KIND} more"
    assert all(line.isprintable() and len(line) < 400 for line in report)


# ---- COCO's own format, and the two parts of a training. ----


def coco_content(names, categories=((1, "cat"), (7, "dog")), **changes):
    """One cat of 10 x 20 pixels in each image."""
    content = {
        "images": [
            {"id": n, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for n, name in enumerate(names, 1)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [5, 6, 10, 20], "area": 200, "iscrowd": 0}
            for n, _ in enumerate(names, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    return {**content, **changes}


def coco(root, files, images):
    """`files`: contents by path; `images`: paths."""
    for name, content in files.items():
        write(root / name, json.dumps(content))
    for name in images:
        image(root / name)
    return root


COCO_LAYOUTS = {
    "official": ("annotations/instances_train17.json", "train17/", "annotations/instances_val17.json", "val17/"),
    "roboflow": ("train/_annotations.coco.json", "train/", "valid/_annotations.coco.json", "valid/"),
    "one folder": ("train.json", "images/", "val.json", "images/"),
    "folders in images": ("annotations/train.json", "images/train/", "annotations/val.json", "images/val/"),
}


@pytest.mark.parametrize("layout", COCO_LAYOUTS)
def test_layouts_of_coco(layout, tmp_path, convert):
    """Protects people whose tool writes another of the usual layouts."""
    train, train_images, val, val_images = COCO_LAYOUTS[layout]
    root = coco(
        tmp_path / "mine",
        {train: coco_content(["a.jpg", "b.jpg"]), val: coco_content(["c.jpg"])},
        [f"{train_images}a.jpg", f"{train_images}b.jpg", f"{val_images}c.jpg"],
    )
    if layout == "official":
        coco(root, {"annotations/captions_train17.json": {"images": [], "annotations": []}}, [])
    found = convert(root)
    assert found.classes == ["cat"] and found.problems.counts == {"class without objects": 1}
    assert {split: len(boxes(found, split)) for split in found.files} == {"train": 2, "val": 1}
    assert boxes(found, "val") == [(f"{val_images}c.jpg", "cat", [5, 6, 10, 20], 0)]


def test_ids_of_classes_may_differ_between_the_files(tmp_path, convert):
    """Protects from a cat that is a dog in the other file: classes go by name."""
    other = coco_content(["b.jpg"], [(1, "dog"), (2, "cat")])
    root = coco(tmp_path / "m", {"train.json": coco_content(["a.jpg"]), "val.json": other}, ["a.jpg", "b.jpg"])
    found = convert(root)
    assert [row[1] for split in ("train", "val") for row in boxes(found, split)] == ["cat", "dog"]


def test_a_single_file_of_coco(tmp_path, convert):
    """Protects a folder with several files: one of them can be named."""
    root = coco(tmp_path / "m", {"train_a.json": coco_content(["a.jpg"]), "train_b.json": coco_content([])}, ["a.jpg"])
    with pytest.raises(ValueError, match="train_a.json and train_b.json are both of the split train"):
        convert(root)
    assert len(boxes(convert(root / "train_a.json"), "train")) == 1


def test_what_is_wrong_with_a_file_of_coco(tmp_path, convert):
    """Protects from a crash and from silent loss: each kind of damage is told, and the rest is there."""
    content = coco_content(["a.jpg", "b.jpg", "gone.jpg", "broken.jpg", "a.jpg", 5])
    good = content["annotations"][0]
    content["annotations"] += [
        {**good, "category_id": 99},
        {**good, "image_id": 99},
        {**good, "bbox": [1, 2, 3]},
        {**good, "bbox": [1, 2, 0, 5]},
        {**good, "bbox": [-5, 2, 10, 5]},
        {**good, "bbox": [20, 2, 10, 5], "iscrowd": 1},
        "nothing",
    ]
    content["images"].append({"id": 1, "file_name": "b.jpg"})
    content["categories"] += [{"id": 8}, {"id": 9, "name": "cat"}]
    content["images"][1].update(width=2 * SIZE[0], height=2 * SIZE[1])
    root = coco(tmp_path / "m", {"all.json": content}, ["a.jpg", "b.jpg"])
    write(root / "broken.jpg", "no image")
    found = convert(root)
    assert found.problems.counts == {
        "id given twice": 1,
        "image without a name": 1,
        "missing image": 1,
        "image given twice": 1,
        "object given twice": 1,
        "class without a name": 1,
        "class named twice": 1,
        "other image size": 1,
        "broken image": 1,
        "unknown class": 1,
        "object of no image": 1,
        "object without a box": 1,
        "box without area": 1,
        "box partly outside the image": 1,
        "entry that is no object": 1,
        "class without objects": 1,
    }
    assert boxes(found, "all") == [
        ("a.jpg", "cat", [5, 6, 10, 20], 0),
        ("a.jpg", "cat", [0, 2, 5, 5], 0),
        ("a.jpg", "cat", [20, 2, 10, 5], 1),
        ("b.jpg", "cat", [2.5, 3, 5, 10], 0),
    ]
    far = coco(tmp_path / "far", {"all.json": coco_content(["a.jpg"])}, ["deep/in/folders/b.jpg"])
    with pytest.raises(ValueError, match="its images, such as a.jpg, are not in "):
        convert(far)


def test_a_choice_of_classes(tmp_path, convert):
    """Protects `--classes`: those alone, in that order, whatever the format; one that is not there is a mistake."""
    root = yolo(tmp_path / "y", {"a": "0 0.5 0.5 0.5 0.4\n1 0.5 0.5 0.2 0.2\n"})
    found = convert(root, only=["dog"])
    assert found.classes == ["dog"] and [row[1] for row in boxes(found, "train")] == ["dog"]
    assert found.problems.counts["other class"] == 1
    with pytest.raises(ValueError, match="has no class cow; it has cat, dog"):
        convert(root, only=["cow"])


def parts(**splits):
    """Splits of images with one object each, but for those whose name begins with "empty"."""
    box = Box("cat", (1, 1, 5, 5))
    made = {
        split: [DatasetImage(Path(f"{file}.jpg"), *SIZE, [] if file.startswith("empty") else [box]) for file in files]
        for split, files in splits.items()
    }
    return {split: [p.path.stem for p in part] for split, part in train_and_val(made).items()}


def test_the_two_parts_of_a_training():
    """Protects the validation: a part that is there is it, and no image is in both."""
    assert parts(train="ab", val="c", test="d") == {"train": ["a", "b"], "val": ["c"]}
    assert parts(train="ab", test="d") == {"train": ["a", "b"], "val": ["d"]}
    assert parts(trainval="abcd", val="c", test="d") == {"train": ["a", "b"], "val": ["c"]}
    split = parts(all=[f"{n}" for n in range(40)] + [f"empty{n}" for n in range(10)])
    assert [len(split["train"]), len(split["val"])] == [40, 10]
    assert sum(name.startswith("empty") for name in split["val"]) == 2
    assert parts(val=[f"{n}" for n in range(10)]).keys() == {"train", "val"}
    with pytest.raises(ValueError, match="no objects to train on: 0 images to train on, 1 to validate"):
        parts(all="a")
    with pytest.raises(ValueError, match="no objects to validate on"):
        parts(train="ab", val=["empty"])


def test_a_split_that_training_does_not_use_is_reported(tmp_path):
    splits = {"train": ["a"], "val": ["b"], "test": ["c", "d"]}
    files = {name: voc_file(voc_object(), filename=f"{name}.jpg") for name in "abcd"}
    conversion = convert_dataset(voc(tmp_path / "mine", files, splits), tmp_path / "coco", two_parts=True)
    assert conversion.unused == {"test": 2}
    assert conversion.table().endswith('The split "test" is not used: 2 images')


@given(st.sets(st.text("abc", min_size=1, max_size=6), min_size=2, max_size=60), st.text("abc", min_size=7, max_size=8))
def test_validation_images_stay_what_they_are(names, more):
    """Protects figures from before a folder grew: with one image more, at most one changes its part, each way."""
    names = sorted(names)
    before, after = set(parts(all=names)["val"]), set(parts(all=[more, *names])["val"])
    assert set(parts(all=names[::-1])["val"]) == before
    assert len(after - before) <= 1 and len(before - after) <= 1


# ---- Mutated files: a clear line, or a dataset that works. ----

TOKENS = ["", "0", "1", "-1", "nan", "inf", "1e999", "9" * 400, "1_0", "cat", "\0", "٣", "../../x", "<", "&amp;", "  "]
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["token", "cut", "drop", "insert", "flip", "double"]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(TOKENS),
        st.binary(min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)
MANY = settings(max_examples=200, deadline=None, derandomize=True)


def mutated(text, mutations):
    """Bytes of a file to which happened what happens to files."""
    data = text.encode()
    for kind, place, token, noise in mutations:
        at = int(place * len(data))
        if kind == "token":  # a number or word is replaced
            ends = [i for i in range(at, len(data)) if data[i : i + 1] in b" <>\n,:"] or [len(data)]
            starts = [i + 1 for i in range(at) if data[i : i + 1] in b" <>\n,:"] or [0]
            data = data[: starts[-1]] + token.encode() + data[ends[0] :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[at + 7 :]
        elif kind == "insert":
            data = data[:at] + noise + data[at:]
        elif kind == "flip":
            data = data[:at] + bytes(b ^ 0x20 for b in data[at : at + 1]) + data[at + 1 :]
        else:
            data = data[:at] + data[max(0, at - 40) : at] + data[at:]
    return data


def loaded(file, image_root):
    """What training gets of an annotation file."""
    register_coco("mutated", file, image_root)
    try:
        return DatasetCatalog.get("mutated")
    finally:
        DatasetCatalog.remove("mutated")
        MetadataCatalog.remove("mutated")


def holds(source, output, objects):
    """Converts; what comes out is one line that says why not, or a dataset that training reads, and no object of
    `objects` is lost without a word."""
    try:
        found = convert_dataset(source, output, force=True)
    except (ValueError, OSError) as error:
        assert "\n" not in str(error) and str(source) in str(error)
        return
    kept = 0
    for file in found.files.values():
        for entry in loaded(file, found.image_root):
            with Image.open(entry["file_name"]) as picture:
                assert picture.size == (entry["width"], entry["height"])
            for obj in entry["annotations"]:
                left, top, right, bottom = BoxMode.convert(obj["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
                assert 0 <= left < right <= entry["width"] + 1e-3 and 0 <= top < bottom <= entry["height"] + 1e-3
                assert 0 <= obj["category_id"] < len(found.classes)
                kept += 1
    assert kept >= objects or found.problems.counts
    assert all(line.isprintable() for line in found.problems.report())
    assert found.summary()


@pytest.fixture(scope="module")
def voc_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("mutated") / "voc"
    return voc(root, {"a": voc_file(voc_object()), "b": voc_file(voc_object("dog"))}, {"train": ["a", "b"]})


@pytest.fixture(scope="module")
def yolo_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("mutated") / "yolo"
    return yolo(root, {"a": "", "b": "1 0.5 0.5 0.5 0.4\n"})


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory):
    return coco(tmp_path_factory.mktemp("mutated") / "coco", {}, ["a.jpg", "b.jpg"])


@MANY
@given(MUTATIONS)
def test_mutated_coco_annotations(coco_root, mutations):
    """Protects from any JSON file: 200 mutated ones."""
    write(coco_root / "train.json", mutated(json.dumps(coco_content(["a.jpg", "b.jpg"])), mutations))
    holds(coco_root, coco_root.parent / "out", 2)


@MANY
@given(MUTATIONS)
def test_mutated_voc_annotations(voc_root, mutations):
    """Protects from any XML file: 200 mutated ones."""
    text = voc_file(voc_object(), voc_object("dog", (2, 3, 39, 28), difficult=1))
    write(voc_root / "Annotations/a.xml", mutated(text, mutations))
    # Tags that are no longer there are no objects: only the file that was left alone counts.
    holds(voc_root, voc_root.parent / "out", 1)


@settings(MANY, max_examples=100)
@given(MUTATIONS)
def test_mutated_voc_lists(voc_root, mutations):
    """Protects from any list of images."""
    write(voc_root / "Annotations/a.xml", voc_file(voc_object()))
    write(voc_root / "ImageSets/Main/train.txt", mutated("a\nb\n", mutations))
    try:
        holds(voc_root, voc_root.parent / "out", 0)
    finally:
        write(voc_root / "ImageSets/Main/train.txt", "a\nb\n")


@MANY
@given(MUTATIONS)
def test_mutated_yolo_labels(yolo_root, mutations):
    """Protects from any label file: 200 mutated ones; what is still a row is an object, or told to be none."""
    data = mutated("0 0.5 0.5 0.5 0.4\n1 0.1 0.2 0.5 0.2 0.5 0.6\n0 0.3 0.3 0.1 0.1\n", mutations)
    write(yolo_root / "labels/train/a.txt", data)
    try:
        rows = sum(bool(row.strip()) for row in data.decode().splitlines())
    except UnicodeDecodeError:
        rows = 0
    holds(yolo_root, yolo_root.parent / "out", 1 + rows)


@MANY
@given(MUTATIONS)
def test_mutated_yolo_descriptions(yolo_root, mutations):
    """Protects from any data.yaml: 200 mutated ones."""
    text = "path: .\ntrain: images/train\nval: [images/train]\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
    write(yolo_root / "labels/train/a.txt", "0 0.5 0.5 0.5 0.4\n")
    write(yolo_root / "data.yaml", mutated(text, mutations))
    try:
        holds(yolo_root, yolo_root.parent / "out", 0)
    finally:
        write(yolo_root / "data.yaml", "train: images/train\nnames: [cat, dog]\n")
