"""The sheet of predictions beside ground truth, on a small drawn dataset."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from detrkit.commands import make_data as make_tiny_coco
from detrkit.commands import visualize_results as tool
from detrkit.reports import sheet


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A drawn dataset, and a results file that repeats its boxes."""
    root = tmp_path_factory.mktemp("shapes") / "data"
    make_tiny_coco.main(["--synthetic", "--train", "1", "--val", "14", "--output", str(root)])
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.1 + 0.2 * (i % 5)}
        for i, a in enumerate(content["annotations"])
    ]
    path = root.parent / "results.json"
    path.write_text(json.dumps(results))
    return root, path, content


@pytest.fixture(autouse=True)
def variable(dataset, monkeypatch):
    monkeypatch.setenv("TINY_COCO_ROOT", str(dataset[0]))


def run(tmp_path, path, *argv):
    output = tmp_path / "new" / "sheet.png"
    tool.main(["--input", str(path), "--output", str(output), *map(str, argv)])
    return np.asarray(Image.open(output))


def test_left_is_truth_and_right_is_predicted(dataset, tmp_path):
    """Without predictions the right cells are bare; with them they are not; runs repeat."""
    _, path, _ = dataset
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    drawn = run(tmp_path, path, "--num", 1, "--score-threshold", 0)
    bare = run(tmp_path, empty, "--num", 1, "--score-threshold", 0)
    assert np.array_equal(drawn, run(tmp_path, path, "--num", 1, "--score-threshold", 0))
    left, right = (slice(start, start + sheet.CELL) for start in (sheet.MARGIN, sheet.MARGIN + sheet.CELL + sheet.GAP))
    picture = slice(-sheet.CELL, -60)  # within the row of cells, clear of the header
    assert np.array_equal(drawn[picture, left], bare[picture, left])
    assert not np.array_equal(drawn[picture, right], bare[picture, right])
    assert not np.array_equal(bare[picture, left], bare[picture, right])


def test_where_nothing_scores_enough_the_best_are_drawn():
    """As many as the image has objects; the caption names the highest score, which explains the threshold."""
    scores = torch.tensor([0.1, 0.27, 0.2])
    predictions = Instances((8, 8), scores=scores, pred_boxes=Boxes(torch.zeros(3, 4)), pred_classes=torch.arange(3))
    low = sheet.best_predictions(predictions, 2, 0.3)
    assert low.pred_classes.tolist() == [1, 2]
    assert sheet.describe_predictions(low, 0.3) == "2 predictions, highest score 0.27"
    assert sheet.best_predictions(predictions, 1, 0.15).pred_classes.tolist() == [1, 2]
    assert sheet.describe_predictions(low, 0.2) == "2 predictions"
    assert sheet.describe_predictions(sheet.best_predictions(predictions, 0, 0.3), 0.3) == "0 predictions"


def test_sheet_grows_with_num(dataset, tmp_path):
    """Rows of two pairs; never more than there are images."""
    _, path, _ = dataset
    two, three, all_of_them = (run(tmp_path, path, "--num", n).shape for n in (2, 3, 100))
    assert two[1] == three[1] == all_of_them[1] == 2 * sheet.MARGIN + 4 * sheet.CELL + 5 * sheet.GAP
    assert three[0] - two[0] > sheet.CELL
    assert all_of_them[0] > 7 * sheet.CELL


def test_the_dataset_of_a_config(dataset, tmp_path):
    """A dataset that only a config registers is found by naming the config."""
    root, path, _ = dataset
    config = tmp_path / "mine.py"
    annotations, images = root / "annotations/instances_val2017.json", root / "val2017"
    config.write_text(
        "from detrkit.datasets import register_coco\n"
        f"register_coco('of_a_config', {str(annotations)!r}, {str(images)!r})\n"
    )
    try:
        assert run(tmp_path, path, "--config-file", config, "--dataset", "of_a_config", "--num", 1).size
    finally:
        DatasetCatalog.remove("of_a_config")
        MetadataCatalog.remove("of_a_config")


def test_selection_is_a_mix(dataset):
    """Few objects to many, one crowd, one empty image; as many as asked for, each once."""
    crowd, plain = [{"iscrowd": 1}], {"iscrowd": 0}
    images = [{"image_id": i, "annotations": [plain] * (1 + i % 6)} for i in range(40)]
    images += [{"image_id": 50, "annotations": []}, {"image_id": 51, "annotations": crowd}]
    for count in range(1, 50):
        ids = [image["image_id"] for image in sheet.select(images, count)]
        assert len(ids) == len(set(ids)) and ids == sorted(ids)
        assert len(ids) == min(count, 42)
        assert count < 4 or {50, 51} <= set(ids)
    shown = {len(image["annotations"]) for image in sheet.select(images, 10)}
    assert {0, 1, 6} <= shown


def test_errors(dataset, tmp_path, capsys):
    """Wrong input gets one line that names it."""
    _, path, content = dataset
    bad = tmp_path / "bad.json"

    def refusal(*argv):
        with pytest.raises(SystemExit) as end:
            run(tmp_path, *argv)
        message = capsys.readouterr().err
        assert end.value.code == 1
        assert message.startswith("error: ") and message.count("\n") == 1
        return message

    assert "nowhere.json" in refusal(tmp_path / "nowhere.json")
    assert "'tiny_coco_vla'" in refusal(path, "--dataset", "tiny_coco_vla")
    assert "--num" in refusal(path, "--num", 0)
    assert "is not the name of a picture" in refusal(path, "--output", tmp_path / "sheets")
    for text in ("{", "3", '{"a": 1}', '[{"image_id": 1}]'):
        bad.write_text(text)
        assert "not a COCO results file" in refusal(bad)
    entry = {"image_id": content["images"][0]["id"], "category_id": 77, "bbox": [0, 0, 1, 1], "score": 0.5}
    bad.write_text(json.dumps([entry]))
    assert "category 77" in refusal(bad)
    bad.write_text(json.dumps([{**entry, "image_id": -1}]))
    assert "another dataset" in refusal(bad)
