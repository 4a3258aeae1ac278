"""The evaluation loop, and average precision compared with pycocotools and with the definition."""

import contextlib
import io
import json
import logging
import math
import os
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    evaluator,
    inference_context,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

CATEGORY_IDS = {7: "cat", 3: "dog", 90: "bird"}  # with gaps and out of order, as annotation files may be


def annotation_file(path, boxes_by_image, crowds=()):
    """`{image_id: [(category_id, [x, y, w, h])]}` as COCO JSON; `crowds` are indices of annotations."""
    flat = [(image_id, *entry) for image_id, entries in boxes_by_image.items() for entry in entries]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200} for i in boxes_by_image],
        "categories": [{"id": id, "name": name} for id, name in CATEGORY_IDS.items()],
        "annotations": [
            {
                "id": index + 1,
                "image_id": image_id,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(index in crowds),
            }
            for index, (image_id, category, box) in enumerate(flat)
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def register(tmp_path):
    """Register an annotation file for one test, and remove it afterwards."""
    names = []

    def add(json_file, **metadata):
        names.append(f"evaluation_test_{len(names)}")
        register_coco_instances(names[-1], metadata, str(json_file), str(tmp_path))
        return names[-1]

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def random_dataset(tmp_path):
    """40 images with objects of all sizes, some crowds, and the detections of a mediocre detector."""
    rng = np.random.default_rng(0)
    truth, outputs = {}, []
    contiguous = {id: index for index, id in enumerate(sorted(CATEGORY_IDS))}
    for image_id in range(100, 140):
        truth[image_id], rows = [], []
        for _ in range(rng.integers(0, 6)):
            box = [float(v) for v in (*rng.uniform(0, 90, 2), *rng.uniform(8, 110, 2))]
            category = int(rng.choice(list(CATEGORY_IDS)))
            truth[image_id].append((category, box))
            for _ in range(rng.integers(0, 3)):
                x, y, w, h = np.array(box) + rng.normal(0, 5, 4)
                rows.append([x, y, x + max(w, 1), y + max(h, 1), rng.random(), contiguous[category]])
        table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        outputs.append(({"image_id": image_id}, {"instances": to_instances(table)}))
    count = sum(map(len, truth.values()))
    return annotation_file(tmp_path / "truth.json", truth, crowds=range(0, count, 9)), outputs


def to_instances(table):
    """Rows of x0, y0, x1, y1, score, class."""
    table = torch.as_tensor(table, dtype=torch.float32).reshape(-1, 6)
    return Instances((200, 200), pred_boxes=Boxes(table[:, :4]), scores=table[:, 4], pred_classes=table[:, 5].long())


def feed(evaluator, outputs):
    evaluator.reset()
    for image, output in outputs:
        evaluator.process([image], [output])
    return evaluator.evaluate()


def by_hand(json_file, results_file, max_dets=(1, 10, 100), category=None):
    """pycocotools as its own demo uses it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(json_file))
        evaluation = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
        evaluation.params.maxDets = list(max_dets)
        if category is not None:
            evaluation.params.catIds = [category]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats * 100


def test_equals_pycocotools_on_the_written_file(random_dataset, register, tmp_path):
    """All six metrics and those of each class equal pycocotools' for the predictions file."""
    json_file, outputs = random_dataset
    results = feed(COCOEvaluator(register(json_file), output_dir=str(tmp_path / "out")), outputs)["bbox"]
    written = tmp_path / "out" / "coco_instances_results.json"
    stats = by_hand(json_file, written)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [results[name] for name in names] == pytest.approx(stats[:6].tolist(), abs=1e-9)
    assert 5 < results["AP"] < 95
    for id, name in CATEGORY_IDS.items():
        assert results[f"AP-{name}"] == pytest.approx(by_hand(json_file, written, category=id)[0], abs=1e-9)
    assert list(results)[:6] == names


@pytest.mark.parametrize("limit, some", [(None, None), (2, None), (None, range(100, 110))])
def test_the_fast_implementation_comes_to_the_same(random_dataset, register, limit, some):
    """faster-coco-eval gives pycocotools' results to 1e-6."""
    pytest.importorskip("faster_coco_eval")
    json_file, outputs = random_dataset
    results = []
    for fast in (True, False):
        evaluator = COCOEvaluator(register(json_file), max_dets_per_image=limit, use_fast_impl=fast)
        feed(evaluator, outputs)
        results.append(evaluator.evaluate(some)["bbox"])
    assert list(results[0]) == list(results[1])
    assert list(results[0].values()) == pytest.approx(list(results[1].values()), abs=1e-6, nan_ok=True)


def test_a_case_worked_out_on_paper(register, tmp_path):
    """One of two objects is detected with IoU 0.6, before a false positive: precision 1 up to recall 1/2.

    51 of the 101 recall points have precision 1, at the IoU thresholds 0.5, 0.55 and 0.6 of the ten.
    """
    truth = annotation_file(tmp_path / "t.json", {1: [(3, [0, 0, 100, 100]), (3, [0, 120, 50, 50])], 2: []})
    detections = [[0, 0, 100, 60.001, 0.9, 0], [150, 150, 190, 190, 0.8, 0]]
    outputs = [({"image_id": id}, {"instances": to_instances(rows)}) for id, rows in ((1, detections), (2, []))]
    results = feed(COCOEvaluator(register(truth)), outputs)["bbox"]
    assert results["AP50"] == pytest.approx(100 * 51 / 101)
    assert results["AP"] == pytest.approx(100 * 51 / 101 * 3 / 10)
    assert results["AP75"] == 0
    assert results["APm"] == 0 and results["APl"] == pytest.approx(30.0)
    assert math.isnan(results["APs"]) and math.isnan(results["AP-cat"])


def test_perfect_boxes_reach_100_in_dataset_ids(random_dataset, register, tmp_path):
    """Class indices become the file's own category ids, by the metadata or by the order of the ids."""
    json_file, _ = random_dataset
    content = json.loads(json_file.read_text())
    for mapping in ({}, {"thing_dataset_id_to_contiguous_id": {7: 0, 3: 1, 90: 2}}):
        ids = mapping.get("thing_dataset_id_to_contiguous_id", {3: 0, 7: 1, 90: 2})
        outputs = []
        for image in content["images"]:
            own = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
            rows = [[x, y, x + w, y + h, 0.9, ids[a["category_id"]]] for a in own for x, y, w, h in [a["bbox"]]]
            outputs.append(({"image_id": image["id"]}, {"instances": to_instances(rows)}))
        results = feed(COCOEvaluator(register(json_file, **mapping), output_dir=str(tmp_path)), outputs)["bbox"]
        assert results["AP"] == pytest.approx(100)
        written = json.loads((tmp_path / "coco_instances_results.json").read_text())
        assert {entry["category_id"] for entry in written} == set(CATEGORY_IDS)


def test_no_detections(register, tmp_path, caplog):
    """Without detections AP is 0, with a warning; without objects AP is nan."""
    truth = annotation_file(tmp_path / "t.json", {1: [(3, [0, 0, 100, 100])]})
    nothing = [({"image_id": 1}, {"instances": to_instances([])})]
    with caplog.at_level(logging.INFO, logger="detectron2"):
        results = feed(COCOEvaluator(register(truth), output_dir=str(tmp_path)), nothing)["bbox"]
    assert results["AP"] == 0 and results["AP-dog"] == 0 and math.isnan(results["AP-cat"])
    assert any("There are no detections" in record.message for record in caplog.records)
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []

    no_objects = annotation_file(tmp_path / "none.json", {1: []})
    assert math.isnan(feed(COCOEvaluator(register(no_objects)), nothing)["bbox"]["AP"])


def test_repeated_and_missing_images(random_dataset, register, caplog):
    """Repeated images count once; a warning reports missing images."""
    json_file, outputs = random_dataset
    evaluator = COCOEvaluator(register(json_file))
    once = feed(evaluator, outputs)
    assert feed(evaluator, outputs + outputs[:7]) == once
    with caplog.at_level(logging.WARNING, logger="detectron2"):
        fewer = feed(evaluator, outputs[:30])
    assert fewer["bbox"]["AP"] < once["bbox"]["AP"]
    assert any("10 of 40 images" in record.message for record in caplog.records)


def test_image_subset(random_dataset, register, tmp_path):
    """`evaluate(img_ids)` is the evaluation of a file that has these images alone."""
    json_file, outputs = random_dataset
    ids = [image["image_id"] for image, _ in outputs[:15]]
    evaluator = COCOEvaluator(register(json_file))
    feed(evaluator, outputs)
    content = json.loads(json_file.read_text())
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (tmp_path / "small.json").write_text(json.dumps(content))
    expected = feed(COCOEvaluator(register(tmp_path / "small.json")), outputs[:15])
    assert evaluator.evaluate(img_ids=ids)["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)


@pytest.mark.parametrize("limit", [2, 300])
def test_max_dets_per_image(limit, register, tmp_path):
    """With 150 false positives before the only true positive, it counts only within the limit of detections."""
    truth = annotation_file(tmp_path / "t.json", {1: [(3, [0, 0, 100, 100])]})
    rows = [[150, 150, 160, 160, 0.9, 0]] * 150 + [[0, 0, 100, 100, 0.1, 0]]
    name = register(truth)
    outputs = [({"image_id": 1}, {"instances": to_instances(rows)})]
    ap = feed(COCOEvaluator(name, max_dets_per_image=limit), outputs)["bbox"]["AP"]
    assert ap == (pytest.approx(100 / 151) if limit == 300 else 0)
    assert feed(COCOEvaluator(name), outputs)["bbox"]["AP"] == 0


def test_pycocotools_prints_into_the_log(random_dataset, register, capsys, caplog):
    """Output goes to the log, with both tables; nothing is printed directly."""
    json_file, outputs = random_dataset
    name = register(json_file)
    with caplog.at_level(logging.INFO, logger="detectron2"):
        feed(COCOEvaluator(name), outputs)
    assert capsys.readouterr().out == ""
    assert "Average Precision  (AP) @[ IoU=0.50:0.95" in caplog.text
    assert "| AP50 " in caplog.text and "| category   | AP" in caplog.text and "| bird" in caplog.text


def test_clear_errors(random_dataset, register, tmp_path):
    """Errors of a wrong set-up are one line with the wrong name or value."""
    json_file, outputs = random_dataset
    name = register(json_file)
    with pytest.raises(ValueError, match="bbox.*segm"):
        COCOEvaluator(name, tasks=("bbox", "segm"))
    with pytest.raises(ValueError, match="max_dets_per_image"):
        COCOEvaluator(name, max_dets_per_image=0)
    with pytest.raises(FileNotFoundError, match="absent.json"):
        COCOEvaluator(register(tmp_path / "absent.json"))
    for text in ("{", "[1]", '{"images": []}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="bad.json is not COCO annotation JSON") as error:
            COCOEvaluator(register(tmp_path / "bad.json"))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="register_coco_instances"):
        COCOEvaluator("evaluation_test_unregistered")
    MetadataCatalog.remove("evaluation_test_unregistered")
    with pytest.raises(ValueError, match="class 3 .* 3 classes"):
        feed(COCOEvaluator(name), [({"image_id": 100}, {"instances": to_instances([[0, 0, 9, 9, 0.5, 3]])})])
    with pytest.raises(ValueError, match="image with id 5"):
        feed(COCOEvaluator(name), [({"image_id": 5}, {"instances": to_instances([])})])


class Recorder(DatasetEvaluator):
    def __init__(self, key="x"):
        self.key, self.seen = key, None

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += list(zip(inputs, outputs, strict=True))

    def evaluate(self):
        return {self.key: len(self.seen)}


class Model(nn.Module):
    """Record the mode and whether gradients are enabled at each call."""

    def __init__(self):
        super().__init__()
        self.frozen, self.active = nn.BatchNorm1d(1).eval(), nn.Dropout()
        self.notes = []

    def forward(self, inputs):
        self.notes.append((self.training, self.active.training, torch.is_grad_enabled()))
        return [{"y": x["id"]} for x in inputs]


@pytest.mark.engine("the period of its progress messages")
@pytest.mark.parametrize("period, reported", [(0, True), (5, False)])
def test_inference_reports_progress_after_a_while(period, reported, caplog, monkeypatch):
    """A short evaluation, one of many in a training, logs no progress; a long one the time left."""
    monkeypatch.setattr(evaluator, "REPORT_SECONDS", period)
    with caplog.at_level(logging.INFO, logger="detectron2"):
        inference_on_dataset(Model(), [[{"id": 0}]] * 3, Recorder())
    assert ("ETA" in caplog.text) == reported


def test_inference_loop(caplog):
    """Eval mode, no gradients, callbacks, batches in order, and the time per image in the log."""
    model, recorder, moments = Model(), Recorder(), []
    names = ["on_start", "before_inference", "after_inference", "on_end"]
    batches = [[{"id": 0}, {"id": 1}], [{"id": 2}, {"id": 3}], [{"id": 4}]]
    with caplog.at_level(logging.INFO, logger="detectron2"):
        result = inference_on_dataset(
            model, batches, recorder, callbacks={name: lambda name=name: moments.append(name) for name in names}
        )
    assert result == {"x": 5}
    assert [(i["id"], o["y"]) for i, o in recorder.seen] == [(k, k) for k in range(5)]
    assert model.notes == [(False, False, False)] * 3
    assert moments == [names[0], *names[1:3] * 3, names[3]]
    assert model.training and model.active.training and not model.frozen.training
    assert "s/image" in caplog.text


def test_modes_come_back_after_an_error():
    """A failure during evaluation leaves neither the model in eval mode nor gradients off."""

    def fail():
        raise RuntimeError("stop")

    model = Model()
    with pytest.raises(RuntimeError, match="stop"):
        inference_on_dataset(model, [[{"id": 0}]], None, callbacks={"after_inference": fail})
    assert model.training and not model.frozen.training and torch.is_grad_enabled()
    with inference_context(model.eval()):
        pass
    assert not model.training


def test_any_callable_and_no_evaluator():
    """A plain function can be timed: no evaluator, no data, several evaluators."""

    def echo(inputs):
        return [{} for _ in inputs]

    assert inference_on_dataset(echo, [[{"id": 0}]], None) == {}
    assert inference_on_dataset(echo, [], Recorder()) == {"x": 0}
    assert inference_on_dataset(echo, [[{}]], [Recorder("a"), Recorder("b")]) == {"a": 1, "b": 1}
    with pytest.raises(ValueError, match="named a"):
        inference_on_dataset(echo, [[{}]], DatasetEvaluators([Recorder("a"), Recorder("a")]))


def test_print_csv_format(caplog):
    """Lines for scripts: names, then values, without those of single classes."""
    with caplog.at_level(logging.INFO, logger="detectron2"):
        print_csv_format({"bbox": {"AP": 12.34567, "APs": float("nan"), "AP-cat": 1.0}})
    assert [record.message for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,APs",
        "copypaste: 12.3457,nan",
    ]


WORKER = """
import json, sys
import torch, torch.distributed as dist
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
register_coco_instances("shared", {}, f"{folder}/truth.json", folder)
tables = json.load(open(f"{folder}/tables.json"))

def model(inputs):
    rows = [torch.tensor(tables[str(x["image_id"])]).reshape(-1, 6) for x in inputs]
    return [
        {"instances": Instances((200, 200), pred_boxes=Boxes(t[:, :4]), scores=t[:, 4], pred_classes=t[:, 5].long())}
        for t in rows
    ]

ids = sorted(map(int, tables))
share = ids[:25] if rank == 0 else ids[20:]
results = inference_on_dataset(model, [[{"image_id": i}] for i in share], COCOEvaluator("shared"))
json.dump(results, open(f"{folder}/results_{rank}.json", "w"))
dist.destroy_process_group()
"""


def test_two_processes_equal_one(random_dataset, register, tmp_path, run_python):
    """Predictions of two ranks, five images of which both ran, give the AP of one process; rank 1 reports nothing."""
    json_file, outputs = random_dataset
    expected = feed(COCOEvaluator(register(json_file)), outputs)["bbox"]
    tables = {}
    for image, output in outputs:
        detections = output["instances"]
        columns = (detections.pred_boxes.tensor, detections.scores[:, None], detections.pred_classes[:, None].float())
        tables[image["image_id"]] = torch.cat(columns, dim=1).tolist()
    (tmp_path / "tables.json").write_text(json.dumps(tables))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    worker = textwrap.dedent(WORKER)
    with ThreadPoolExecutor() as pool:
        ranks = pool.map(lambda rank: run_python("-c", worker, rank, tmp_path, PYTHONPATH=path), range(2))
        assert [rank.returncode for rank in ranks] == [0, 0]
    assert json.loads((tmp_path / "results_0.json").read_text())["bbox"] == pytest.approx(expected, nan_ok=True)
    assert json.loads((tmp_path / "results_1.json").read_text()) == {}
