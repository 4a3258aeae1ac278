"""`align-detr explore`: the page, its data, the filters of its script, and mistakes in one line."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import detrkit
from detrkit.analysis.errors import KINDS
from detrkit.analysis.image_errors import errors_of_image, lrp_sum
from detrkit.commands import explore, make_data
from detrkit.reports import explore_page
from detrkit.reports.explore import losses_of_run
from detrkit.reports.explore_page import Shown, page_data
from tests.detrkit.analysis.test_errors import CLASSES, random_images
from tests.detrkit.inference.conftest import write_run

EVIL = "</script><script>alert(1)</script>"
NASTY = ["plain.png", "a b#1?.png", 'quo"te\'<img src=x>.png', "sub/µ%41.png"]


@pytest.fixture
def files(tmp_path):
    """Four images with a cat and a dog each, with names that HTML and URLs could misread; detections of some."""
    images = tmp_path / "images"
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": EVIL}, {"id": 8, "name": "dog"}]}
    results = []
    for number, name in enumerate(NASTY):
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((80, 700 if number else 100, 3), 40 * number, np.uint8)).save(path)
        width = Image.open(path).width
        content["images"].append({"id": 10 + number, "file_name": name, "width": width, "height": 80})
        for category, box in ((3, [5, 5, 30, 30]), (8, [50, 10, 20, 40])):
            entry = {"image_id": 10 + number, "category_id": category, "bbox": box}
            content["annotations"].append({"id": 1 + len(content["annotations"]), "area": 9, "iscrowd": 0, **entry})
            results.append({**entry, "score": 0.9 - 0.1 * number})
    results[1]["bbox"] = [70, 10, 20, 40]  # far off
    results[3]["category_id"] = 3
    del results[6]
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(results))
    return {"predictions": tmp_path / "found.json", "annotations": tmp_path / "val.json", "images": images}


def words(files, *more):
    return [word for name, path in files.items() for word in (f"--{name}", str(path))] + list(more)


def data_of(page):
    text = Path(page).read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def columns(part, name):
    return [part[name][a:b] for a, b in zip(part["first"], part["first"][1:], strict=False)]


def test_page_of_files(files, capsys):
    """What the page holds, by hand; its addresses lead to the files; names stay text."""
    explore.main(words(files))
    page = files["predictions"].parent / "explore.html"
    assert capsys.readouterr().out == f"Wrote 4 images to {page}\n"
    data = data_of(page)
    assert data["classes"] == [EVIL, "dog"] and data["images"]["name"] == NASTY
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2 and "alert(1)</script>" not in text
    for name, url, small in zip(*(data["images"][key] for key in ("name", "url", "small")), strict=True):
        assert not set("#?\"'<> ") & set(url + small)
        assert (page.parent / unquote(url)).samefile(files["images"] / name)
        assert max(Image.open(page.parent / unquote(small)).size) <= explore_page.SIDE
    kinds = [[data["kinds"][kind] for kind in part] for part in columns(data["detections"], "kind")]
    assert kinds == [["correct", "background"], ["correct", "classification"], ["correct"] * 2, ["correct"]]
    assert [max(part) for part in columns(data["detections"], "score")] == [9000, 8000, 7000, 6000]
    assert columns(data["objects"], "seen") == [[9000, -10000], [8000, 8000], [7000, 7000], [-10000, 6000]]
    assert data["detections"]["box"][:4] == [50, 50, 300, 300]
    assert "loss" not in data["images"] and "explored_images" not in DatasetCatalog.list()


def test_small_copies_are_kept_and_replaced(files):
    """A second page makes no copy again; a changed image gets another one; an image less is named."""
    first = detrkit.explore(**files)
    copies = {path: path.stat().st_mtime_ns for path in (first.path.parent / "explore_images").iterdir()}
    assert len(copies) == 4 and first.unreadable == []
    Image.new("RGB", (100, 80), "red").save(files["images"] / NASTY[0])
    (files["images"] / NASTY[1]).write_bytes(b"no image")
    second = detrkit.explore(**files)
    after = {path: path.stat().st_mtime_ns for path in (first.path.parent / "explore_images").iterdir()}
    assert copies.items() < after.items() and len(after) == 5
    assert len(second.unreadable) == 1 and NASTY[1] in second.unreadable[0]
    assert [small is None for small in data_of(second.path)["images"]["small"]] == [False, True, False, False]


def test_worst_images_and_lowest_score(files, tmp_path):
    done = detrkit.explore(**files, num_images=2, min_score=0.65, output=tmp_path / "other" / "page.html")
    data = data_of(tmp_path / "other/page.html")
    assert done.images == 2 and data["images"]["name"][0] == NASTY[0]
    assert min(data["detections"]["score"]) >= 6500 and data["lowest"] == 0.65
    assert (tmp_path / "other/page_images").is_dir()


def test_page_of_a_training_with_loss(tmp_path, monkeypatch, capsys):
    """The folder alone: its config names the data, its last evaluation the detections, its weights give the losses."""
    make_data.main(["--synthetic", "--train", "2", "--val", "3", "--output", str(tmp_path / "data")])
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "data"))
    folder = write_run(tmp_path / "run")
    truth = json.loads((tmp_path / "data/annotations/instances_val2017.json").read_text())
    results = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for entry in truth["annotations"]
        if not entry["iscrowd"]
    ]
    (folder / "coco_instances_results.json").write_text(json.dumps(results))
    capsys.readouterr()
    explore.main([str(folder), "--loss"])
    assert capsys.readouterr().out.endswith(f"Wrote 3 images to {folder / 'explore.html'}\n")
    data = data_of(folder / "explore.html")
    assert data["score"] == 0.5 and set(data["detections"]["kind"]) == {0} and "tiny_coco_val" in data["title"]
    losses = losses_of_run(folder)
    assert sorted(data["images"]["loss"]) == pytest.approx(sorted(losses.values()), rel=1e-3)
    assert len(set(losses.values())) == 3 and min(losses.values()) > 0


@pytest.mark.parametrize("change, message", [
    ({}, "error: give either the folder of a training, or all of predictions, annotations and images\n"),
    ({"annotations": "val.json"}, "error: give either the folder of a training, or all of predictions, annotations and "
     "images\n"),
    ({"annotations": "val.json", "images": "images"}, "error: annotations need predictions\n"),
    ({"annotations": "val.json", "images": "images", "predictions": "gone.json"}, "error: no such file: gone.json\n"),
    ({"annotations": "val.json", "images": "gone", "predictions": "found.json"},
     "error: no such folder of images: gone\n"),
])  # fmt: skip
def test_mistakes_end_in_one_line(files, monkeypatch, capsys, change, message):
    monkeypatch.chdir(files["predictions"].parent)
    with pytest.raises(SystemExit):
        explore.main(words(change))
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("options, message", [
    (["nowhere"], "error: no such folder: nowhere\n"),
    (["bare"], "error: bare/coco_instances_results.json is not there: `align-detr eval bare` writes it\n"),
    (["bare", "--iou", "0"], "error: the IoU threshold is 0.0: give a number above 0, up to 1\n"),
    (["bare", "--min-score", "2"], "error: argument --min-score: 2: expected a score from 0 to 1 (`align-detr explore "
     "--help` lists the options)\n"),
    (["bare", "--num", "0"], "error: the number of images is 0: give a number from 1 up\n"),
])  # fmt: skip
def test_mistakes_with_a_folder(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "bare")
    with pytest.raises(SystemExit):
        explore.main(options)
    assert capsys.readouterr().err == message


def test_no_readable_image_is_an_error(files):
    shutil.rmtree(files["images"])
    files["images"].mkdir()
    with pytest.raises(ValueError, match="no image can be read; the first: .*plain.png: there is no such image"):
        detrkit.explore(**files)


def shown_cases():
    for seed in range(8):
        images = random_images(seed)
        dicts = [{"file_name": f"/x/{n}.jpg", "width": 100, "height": 100} for n in range(len(images))]
        errors = [errors_of_image(image) for image in images]
        yield Shown("t", "/x", [str(c) for c in range(CLASSES)], list(zip(dicts, errors, strict=True)), 0.5, 0.3, 0.0)


FILTERS = [
    {"class": label, "score": score, "iouLow": low, "iouHigh": high, "kinds": kinds, "name": "", "sort": "lrp"}
    for label in (-1, 1)
    for score in (0, 5000)
    for low, high in ((0, 1000), (300, 800))
    for kinds in ([], [1, 3], [7])
]


def select_slowly(data, errors, options):
    """Images and number of boxes that fit, from the errors of each image."""
    fitting = []
    for e in errors:
        boxes = 0
        for n in range(len(e.scores)):
            kind, label = e.kinds[n] + 1, options["class"]
            own = {int(e.classes[n])} | ({int(e.gt_classes[e.about[n]])} if e.about[n] >= 0 else set())
            fits = e.scores[n] * 10000 + 1e-6 >= options["score"] and kind <= len(KINDS)
            fits &= options["iouLow"] <= int(e.iou[n] * 1000 + 1e-6) <= options["iouHigh"]
            boxes += bool(fits and (label < 0 or label in own) and (not options["kinds"] or kind in options["kinds"]))
        for g in range(len(e.gt_classes)):
            missed = not e.is_crowd[g] and e.seen[g] * 10000 + 1e-6 < options["score"] and not options["iouLow"]
            missed &= options["class"] in (-1, int(e.gt_classes[g]))
            boxes += bool(missed and (not options["kinds"] or 7 in options["kinds"]))
        fitting.append(boxes)
    return fitting


@pytest.mark.skipif(not shutil.which("node"), reason="needs node, which runs the page's script")
def test_filters_of_the_script(tmp_path):
    """The script's filters against a slow formulation, and its order of images against `lrp_sum`."""
    cases = list(shown_cases())
    datas = [page_data(shown, ["small.jpg"] * len(shown.images), tmp_path / "page.html") for shown in cases]
    script = Path(explore_page.__file__).with_name("explore_filter.js").read_text()
    program = script + """
    const [datas, filters] = JSON.parse(require("fs").readFileSync(0, "utf8"));
    const run = (data) => filters.map((filter) => {
      const found = selectImages(data, {...filter, kinds: new Set(filter.kinds)});
      return {...found, lrp: [...found.lrp], matches: [...found.matches]};
    });
    console.log(JSON.stringify(datas.map(run)));
    """
    given = json.dumps([datas, FILTERS])
    done = subprocess.run(["node", "-e", program], input=given, capture_output=True, text=True, check=True, timeout=60)
    for shown, data, results in zip(cases, datas, json.loads(done.stdout), strict=True):
        errors = [found for _, found in shown.images]
        for options, result in zip(FILTERS, results, strict=True):
            fitting = select_slowly(data, errors, options)
            assert result["matches"] == fitting and result["boxes"] == sum(fitting)
            is_open = options["class"] < 0 and not options["kinds"] and options["iouHigh"] == 1000
            assert set(result["order"]) == {n for n, boxes in enumerate(fitting) if boxes or is_open}
            lrp = result["lrp"]
            assert [lrp[n] for n in result["order"]] == sorted((lrp[n] for n in result["order"]), reverse=True)
            if options["class"] < 0:
                expected = [lrp_sum(e, options["score"] / 10000) for e in errors]
                assert lrp == pytest.approx(expected, abs=0.05)
