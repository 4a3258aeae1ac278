"""The drawn dataset and the subset of a real one: true to COCO's format, to the pixels and to the seed."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes, label

from detrkit.commands import make_data as tool
from detrkit.datasets import shapes, small

SPLITS = ("train2017", "val2017")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decoder




def annotations(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "shapes"
    tool.main(["--synthetic", "--train", "60", "--val", "12", "--output", str(root)])
    return root


def test_layout_and_fields(drawn):
    """COCO's files and keys; ids unique over both splits; images as they are declared."""
    image_ids, annotation_ids = [], []
    for split, count in zip(SPLITS, (60, 12), strict=True):
        content = annotations(drawn, split)
        assert {"info", "licenses", "images", "annotations", "categories"} == set(content)
        assert len(content["images"]) == count == len(list((drawn / split).iterdir()))
        for image in content["images"]:
            with Image.open(drawn / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (128, 128)
                assert picture.mode == "RGB"
        image_ids += [image["id"] for image in content["images"]]
        annotation_ids += [a["id"] for a in content["annotations"]]
        assert {a["image_id"] for a in content["annotations"]} <= set(image_ids)
        assert len(content["categories"]) >= 3
    assert len(set(image_ids)) == 72 and len(set(annotation_ids)) == len(annotation_ids)


def test_boxes_areas_and_masks_agree(drawn):
    """pycocotools reads each polygon and run-length mask as the annotated area and box; no two share a pixel."""
    coco = COCO(str(drawn / "annotations" / "instances_train2017.json"))
    for image_id in coco.getImgIds():
        covered = np.zeros((128, 128), dtype=bool)
        for a in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
            mask = coco.annToMask(a).astype(bool)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            assert a["bbox"] == box
            assert mask.sum() >= a["area"] > 0  # a polygon fills the hole that an object on top leaves
            if isinstance(a["segmentation"], dict):
                assert mask.sum() == a["area"] and a["iscrowd"] == 1
            else:
                assert a["iscrowd"] == 0
            covered |= mask
        # Each pixel belongs to one object only: what fills the hole of one is counted with another.
        assert covered.sum() == sum(a["area"] for a in coco.loadAnns(coco.getAnnIds(imgIds=image_id)))


def test_content_is_a_mix(drawn):
    """Crowds, empty images, every class, small and medium and large objects, overlapping boxes: all are there."""
    content = annotations(drawn, "train2017")
    per_image = Counter(a["image_id"] for a in content["annotations"])
    assert 1 <= sum(image["id"] not in per_image for image in content["images"]) <= 6
    assert 3 <= sum(a["iscrowd"] for a in content["annotations"]) <= 10
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    sizes = Counter(small.size_name(a["area"]) for a in objects)
    assert sizes["small"] > 20 and sizes["medium"] > 40 and sizes["large"] >= 1
    classes = Counter(a["category_id"] for a in objects)
    assert len(classes) == len(content["categories"]) and min(classes.values()) > len(objects) / 5
    assert 1.5 < len(objects) / 60 < 5 and max(per_image.values()) <= 7


def test_color_is_no_cue(drawn):
    """The mean colour of a class's boxes is about that of the others."""
    content = annotations(drawn, "train2017")
    files = {image["id"]: image["file_name"] for image in content["images"]}
    means = {}
    for a in content["annotations"]:
        x, y, w, h = map(int, a["bbox"])
        pixels = np.asarray(Image.open(drawn / "train2017" / files[a["image_id"]]))
        means.setdefault(a["category_id"], []).append(pixels[y : y + h, x : x + w].mean((0, 1)))
    by_class = np.array([np.mean(colors, axis=0) for colors in means.values()])
    assert np.ptp(by_class, axis=0).max() < 45


def test_same_seed_same_bytes(drawn, tmp_path):
    """The same options give the same files; another seed others; a larger --train only adds images."""
    again, longer, other = tmp_path / "again", tmp_path / "longer", tmp_path / "other"
    options = ["--synthetic", "--val", "12", "--output"]
    tool.main([*options, str(again), "--train", "60"])
    tool.main([*options, str(longer), "--train", "63"])
    tool.main([*options, str(other), "--train", "60", "--seed", "1"])
    name = "annotations/instances_train2017.json"
    assert (again / name).read_bytes() == (drawn / name).read_bytes() != (other / name).read_bytes()
    for split in SPLITS:
        for path in (drawn / split).iterdir():
            assert (again / split / path.name).read_bytes() == path.read_bytes()
            assert (longer / split / path.name).read_bytes() == path.read_bytes()
    base, more = annotations(drawn, "train2017"), annotations(longer, "train2017")
    assert more["annotations"][: len(base["annotations"])] == base["annotations"]


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=150, deadline=None)
def test_trace_is_exact(mask):
    """Polygons of any mask, drawn by pycocotools, give the mask back with its holes filled, part by part."""
    polygons = shapes.trace(mask)
    assert len(polygons) == label(binary_fill_holes(mask, structure=np.ones((3, 3))))[1]
    if not polygons:
        assert not mask.any()
        return
    height, width = mask.shape
    filled = rle.decode(rle.merge(rle.frPyObjects(polygons, height, width))).astype(bool)
    assert np.array_equal(filled, binary_fill_holes(mask, structure=np.ones((3, 3))))


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=100, deadline=None)
def test_run_lengths_decode(mask):
    """COCO's own decoder gives the mask back, one that begins with a set pixel included."""
    encoded = rle.frPyObjects(shapes.run_lengths(mask), *mask.shape)
    assert np.array_equal(rle.decode(encoded), mask)


@pytest.fixture
def real(tmp_path):
    """A COCO-like folder: 30 images per split of which one has a crowd, two are empty and one has no file."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in SPLITS:
        (root / split).mkdir()
        images = [
            {"id": i, "file_name": f"{i:012d}.jpg", "width": 8, "height": 8, "license": 1 + i % 3} for i in range(30)
        ]
        for image in images[:-1]:
            Image.new("RGB", (8, 8)).save(root / split / image["file_name"])
        content = {
            "info": {"year": 2017},
            "licenses": [{"id": i, "name": f"licence {i}"} for i in range(1, 9)],
            "images": images,
            "annotations": [
                {
                    "id": 10 * i + j, "image_id": i, "category_id": 1 + j, "bbox": [0, 0, 4, 4], "area": 16,
                    "iscrowd": int(i == 17 and j == 0), "segmentation": [[0, 0, 4, 0, 4, 4]],
                }
                for i in range(30) if i not in (5, 6) for j in range(2)
            ],
            "categories": [{"id": i, "name": f"class {i}"} for i in range(1, 81)],
        }  # fmt: skip
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_subset(real, tmp_path, capsys):
    """N images with their files and annotations, all categories, the licences in use, a crowd and an empty image."""
    out = tmp_path / "subset"
    tool.main(["--from", str(real), "--images", "5", "--output", str(out)])
    for split in SPLITS:
        content, source = annotations(out, split), annotations(real, split)
        ids = [image["id"] for image in content["images"]]
        assert len(ids) == 5 and ids == sorted(ids)
        assert 17 in ids and {5, 6} & set(ids) and 29 not in ids
        assert sorted(path.name for path in (out / split).iterdir()) == [f"{i:012d}.jpg" for i in ids]
        assert content["annotations"] == [a for a in source["annotations"] if a["image_id"] in ids]
        assert content["categories"] == source["categories"] and content["info"] == {"year": 2017}
        assert {entry["id"] for entry in content["licenses"]} == {image["license"] for image in content["images"]}
    printed = capsys.readouterr().out
    assert "train2017" in printed and "more classes" in printed and str(out) in printed
    tool.main(["--from", str(real), "--images", "5", "--output", str(out), "--seed", "1"])
    assert [image["id"] for image in annotations(out, "train2017")["images"]] != ids


def test_own_output_is_replaced_and_the_source_is_safe(real, tmp_path):
    """A second run leaves nothing of the first; hard-linked photographs of the source stay as they were."""
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in real.rglob("*") if path.is_file()}
    tool.main(["--from", str(real), "--images", "29", "--output", str(out)])
    tool.main(["--synthetic", "--train", "3", "--val", "2", "--size", "64", "--output", str(out)])
    assert len(list((out / "train2017").iterdir())) == 3
    assert {path: path.read_bytes() for path in real.rglob("*") if path.is_file()} == before


def refusal(capsys, *argv):
    """The one-line message that the tool ends with."""
    with pytest.raises(SystemExit) as end:
        tool.main([str(item) for item in argv])
    message = capsys.readouterr().err.rstrip("\n")
    assert end.value.code == 1 and message.startswith("error: ") and "\n" not in message
    return message


def test_refuses_foreign_folders(tmp_path, capsys):
    """A folder with other things in it is left alone, unless told otherwise; even then only the data is replaced."""
    out = tmp_path / "mine"
    (out / "train2017").mkdir(parents=True)
    (out / "train2017" / "precious.jpg").touch()
    (out / "notes.txt").write_text("keep")
    options = ["--synthetic", "--train", "1", "--val", "1", "--size", "64", "--output", out]
    assert "--force" in refusal(capsys, *options)
    assert (out / "train2017" / "precious.jpg").exists()
    tool.main([*map(str, options), "--force"])
    assert (out / "notes.txt").read_text() == "keep" and not (out / "train2017" / "precious.jpg").exists()
    (tmp_path / "file").touch()
    assert "not a folder" in refusal(capsys, *options[:-1], tmp_path / "file")


def test_errors(real, tmp_path, capsys):
    """Wrong input gets one line that names it, and an earlier output is not lost to it."""
    out = tmp_path / "out"
    tool.main(["--synthetic", "--train", "2", "--val", "2", "--size", "64", "--output", str(out)])

    def fails(*argv):
        return refusal(capsys, *argv, "--output", out)

    assert "nowhere" in fails("--from", tmp_path / "nowhere", "--images", 3)
    assert "has only 29 annotated images" in fails("--from", real, "--images", 30)
    assert "--images must be at least 1" in fails("--from", real, "--images", 0)
    assert "--size must be at least" in fails("--synthetic", "--size", 3)
    assert "--seed" in fails("--synthetic", "--seed", -1)
    assert "is or contains" in refusal(capsys, "--from", real, "--images", 3, "--output", real, "--force")
    assert "is or contains" in refusal(capsys, "--from", real, "--images", 3, "--output", real.parent, "--force")
    path = real / "annotations" / "instances_val2017.json"
    for text in ("{", "[]", '{"images": []}'):
        path.write_text(text)
        assert f"{path} is not COCO annotation JSON" in fails("--from", real, "--images", 3)
    path.unlink()
    assert f"no file {path}" in fails("--from", real, "--images", 3)
    assert len(annotations(out, "train2017")["images"]) == 2
    for usage in ("--synthetic --images 3", "--from x --images 3 --size 9", "--from x", ""):
        with pytest.raises(SystemExit) as end:
            tool.main(usage.split())
        assert end.value.code == 2


def test_default_output(monkeypatch, tmp_path):
    """TINY_COCO_ROOT says where to write when --output does not."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "by_variable"))
    tool.main(["--synthetic", "--train", "1", "--val", "1", "--size", "64"])
    assert (tmp_path / "by_variable" / "annotations" / "instances_val2017.json").is_file()
    monkeypatch.delenv("TINY_COCO_ROOT")
    assert tool.default_output() == Path("datasets/tiny_coco")
