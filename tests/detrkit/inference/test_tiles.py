"""Detection in tiles: each drawn rectangle is found once, whatever the tiles."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from align_detr import Detector
from detrkit.commands import demo
from detrkit.inference import detector as detector_module
from detrkit.inference.network import Predictions
from detrkit.inference.tiles import Tiles, View, merge_views

from .blobs import Blobs, draw

CELL = 40


def detector_of_blobs(longest=None, **options):
    """A `Detector` whose network finds rectangles; with that network."""
    network = Blobs(longest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_module, "open_graph", lambda *_: network)
        return Detector("blobs.onnx", **options), network


@st.composite
def drawings(draw_value, smallest=4):
    """Height, width and rectangles: at most one in each cell of 40 x 40 pixels, apart from each other."""
    rows, columns = draw_value(st.integers(2, 8)), draw_value(st.integers(2, 8))
    objects = []
    for row in range(rows):
        for column in range(columns):
            if draw_value(st.booleans()):
                width, height = (draw_value(st.integers(smallest, 30)) for _ in range(2))
                left = CELL * column + draw_value(st.integers(2, 36 - width))
                top = CELL * row + draw_value(st.integers(2, 36 - height))
                objects.append((draw_value(st.integers(0, 2)), left, top, left + width, top + height))
    return CELL * rows, CELL * columns, objects


def as_set(found):
    boxes = found.boxes.astype(int).tolist()
    return sorted((label, *box) for label, box in zip(found.classes.tolist(), boxes, strict=True))


@given(drawings(), st.integers(32, 150), st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=40, deadline=None)
def test_tiles_change_nothing_for_what_the_whole_image_shows(drawing, tile, overlap):
    """Where the whole image shows each object, its pieces in tiles add none; also objects larger than tiles."""
    height, width, objects = drawing
    detector, _ = detector_of_blobs(tile=tile, overlap=overlap)
    (found,) = detector(draw(height, width, objects), 0.0)
    assert as_set(found) == sorted(objects)
    assert (np.diff(found.scores) <= 0).all()


@given(drawings())
@settings(max_examples=40, deadline=None)
def test_small_objects_are_found_in_tiles(drawing):
    """The whole image is scaled down to 100 pixels, in which small objects vanish; the overlap is as large as they."""
    height, width, objects = drawing
    pixels = draw(height, width, objects)
    (found,) = detector_of_blobs(100, tile=100, overlap=0.34)[0](pixels, 0.0)
    assert len(found) == len(objects)
    rest = as_set(found)
    for label, *box in objects:
        nearest = min(rest, key=lambda other: np.abs(np.subtract(other[1:], box)).max())
        assert nearest[0] == label and np.abs(np.subtract(nearest[1:], box)).max() <= 4
        rest.remove(nearest)
    (whole,) = detector_of_blobs(100)[0](pixels, 0.0)
    assert len(whole) <= len(objects)


def test_an_object_larger_than_the_tiles():
    """It is found in the whole image, and small ones on the same image in tiles: neither alone finds all."""
    objects = [(0, 20, 30, 580, 350), (1, 300, 385, 305, 390), (0, 10, 4, 16, 9)]
    pixels = draw(400, 600, objects)
    (found,) = detector_of_blobs(100, tile=100)[0](pixels, 0.0)
    assert len(found) == 3 and found.classes.tolist().count(0) == 2
    (whole,) = detector_of_blobs(100)[0](pixels, 0.0)
    assert len(whole) == 1


def test_images_no_larger_than_a_tile_are_not_divided():
    detector, network = detector_of_blobs(tile=100)
    list(detector([draw(100, 80, []), draw(101, 80, [])], 0.0))
    assert network.sizes == [(100, 80), (101, 80), (100, 80), (100, 80)]


@given(st.integers(1, 900), st.integers(1, 900), st.integers(16, 300), st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.9]))
@settings(max_examples=60, deadline=None)
def test_the_grid(height, width, size, overlap):
    """Tiles have one size, lie in the image, cover it, and overlap enough; there are no more than needed."""
    boxes = Tiles(size, overlap).boxes(height, width)
    assert len({(right - left, bottom - top) for left, top, right, bottom in boxes}) == 1
    for length, (low, high) in zip((width, height), ((0, 2), (1, 3)), strict=True):
        spans = sorted({(box[low], box[high]) for box in boxes})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(b[0] <= a[1] - overlap * size + 1 for a, b in zip(spans, spans[1:], strict=False))
        assert len(spans) <= max(1, np.ceil((length - size) / (size * (1 - overlap)) - 1e-6) + 1)


def slow_merge(views):
    """`merge_views` as loops over pairs."""

    def area(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    rows = [
        {"view": n, "box": box, "score": score, "class": label, "cut": bool(cut)}
        for n, view in enumerate(views)
        for box, score, label, cut in zip(*(x.tolist() for x in (*view.found, view.is_cut)), strict=True)
    ]
    kept = []
    for row in sorted(rows, key=lambda row: -row["score"] * (0.5 if row["cut"] else 1)):
        for other in kept:
            if other["view"] == row["view"] or other["class"] != row["class"]:
                continue
            a, b = other["box"], row["box"]
            common = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
            is_covered = row["cut"] and common > 0.5 * area(b)
            if common > 0.5 * (area(a) + area(b) - common) or is_covered:
                other["best"] = max(other["best"], row["score"])
                break
        else:
            kept.append({**row, "best": row["score"]})
    return sorted((row["class"], *row["box"], row["best"]) for row in kept)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_merging_is_the_slow_formulation(seed):
    random = np.random.default_rng(seed)
    views = []
    for count in random.integers(0, 12, random.integers(1, 5)):
        corner = random.integers(0, 30, (count, 2))
        boxes = np.concatenate([corner, corner + random.integers(1, 25, (count, 2))], axis=1).astype(np.float32)
        scores = random.permutation(100)[:count].astype(np.float32) / 100
        scores += len(views) / 1000  # no two are equal
        views.append(View(Predictions(boxes, scores, random.integers(0, 2, count)), random.random(count) < 0.4))
    boxes, scores, classes = merge_views(views)
    assert (np.diff(scores) <= 0).all()
    rows = zip(boxes.tolist(), scores.tolist(), classes.tolist(), strict=True)
    found = sorted((label, *box, score) for box, score, label in rows)
    np.testing.assert_allclose(found, slow_merge(views))


def test_a_cut_box_gives_way():
    """Half an object of the higher score is removed, and the whole object takes its score; junk does not remove it."""

    def view(box, score, is_cut):
        found = Predictions(np.array([box], np.float32), np.array([score], np.float32), np.array([1]))
        return View(found, np.array([is_cut]))

    def merged(score):
        return merge_views([view([0, 0, 40, 20], score, False), view([20, 0, 40, 20], 0.8, True)])

    found = merged(0.5)
    assert found.boxes.tolist() == [[0, 0, 40, 20]] and found.scores.tolist() == [pytest.approx(0.8)]
    assert len(merged(0.1).boxes) == 2


@pytest.mark.parametrize("options, message", [
    ({"tile": 8}, "tile=8: expected a side of 16 pixels or more"),
    ({"tile": True}, "tile=True: expected"),
    ({"tile": 64, "overlap": 1.0}, "overlap=1.0: expected a share from 0 to 0.9"),
])  # fmt: skip
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        Detector("blobs.onnx", **options)


@pytest.mark.parametrize("words, message", [
    (["--tile", "8"], "--tile 8: at least 16 pixels"),
    (["--tile", "64", "--overlap", "0.95"], "--overlap 0.95: expected 0 to 0.9"),
    (["--tile", "64", "--layer", "1"], "--layer=1 needs a model of PyTorch, and no --tile"),
])  # fmt: skip
def test_mistakes_on_the_command_line(tmp_path, run_folder, monkeypatch, capsys, words, message):
    Image.fromarray(draw(80, 80, [])).save(tmp_path / "image.png")
    with pytest.raises(SystemExit):
        demo.main([str(run_folder), "--input", str(tmp_path / "image.png"), "--output", str(tmp_path / "out"), *words])
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"


def test_from_the_command_line(tmp_path, run_folder):
    """`align-detr demo --tile` writes what `Detector` with tiles finds, for a network of PyTorch."""
    pixels = draw(90, 120, [(0, 10, 10, 30, 40), (1, 60, 50, 100, 80)])
    Image.fromarray(pixels).save(tmp_path / "image.png")
    words = ["--input", str(tmp_path / "image.png"), "--output", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit) as end:
        demo.main([str(run_folder), *words, str(tmp_path / "all.json"), "--tile", "64", "--score-threshold", "0.2"])
    assert end.value.code == 0
    (found,) = Detector(run_folder, device="cpu", tile=64)(pixels, 0.2)
    entries = json.loads((tmp_path / "all.json").read_text())
    assert len(entries) == min(100, len(found)) > 3
    np.testing.assert_allclose([entry["score"] for entry in entries], found.scores[:100], atol=1e-5)
    (whole,) = Detector(run_folder, device="cpu")(pixels, 0.2)
    assert len(whole) != len(found)
