"""The page on a training: what it shows, that it needs no network, and that it cannot hurt the training."""

import html
import io
import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage

from align_detr._platform import describe
from detrkit.config.load import load_config
from detrkit.reports import training_curves
from detrkit.reports import training_page as training

TOOLS = Path(__file__).resolve().parents[3] / "tools"
TOY = str(Path(__file__).with_name("toy_config.py"))
ALIGN = str(TOOLS.parent / "projects/align_detr/configs/align_detr_tiny.py")
LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")


@pytest.fixture
def tools(monkeypatch):
    """The tools' modules, with loggers as in a fresh process."""
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    from detrkit.commands import train as train_net
    from detrkit.reports import training_report
    from detrkit.training import live_line

    return SimpleNamespace(live_line=live_line, train_net=train_net, report=training_report)


@pytest.fixture
def train(tools, tmp_path):
    """`train("a.b=1")` trains the toy detector with the report; returns the output folder."""

    def train(*overrides, folder="toy"):
        overrides = [f"train.output_dir={tmp_path / folder}", "train.report.enabled=True", *overrides]
        tools.train_net.main(["--config-file", TOY, *overrides])
        return tmp_path / folder

    return train


@pytest.fixture
def shapes(monkeypatch, tmp_path):
    """Images of a drawn dataset, with annotations."""
    from detrkit.commands import make_data as make_tiny_coco

    make_tiny_coco.main(["--synthetic", "--train", "1", "--val", "5", "--output", str(tmp_path / "data")])
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "data"))
    from detrkit.datasets import register_tiny_coco

    register_tiny_coco()
    return DatasetCatalog.get("tiny_coco_val")


def perfect(image, score):
    """Each object found, and one box where nothing is that scores 0.5."""
    objects = [a for a in image["annotations"] if not a["iscrowd"]]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return Instances(
        (image["height"], image["width"]),
        pred_boxes=Boxes(torch.tensor([*boxes, [0.0, 0.0, 1.0, 1.0]])),
        scores=torch.tensor([score] * len(boxes) + [0.5]),
        pred_classes=torch.tensor([*(a["category_id"] for a in objects), 0]),
    )


@pytest.fixture
def evaluated(tools, shapes, tmp_path):
    """`evaluated(score)`: the page after an evaluation with `perfect` detections, and the storage of its metrics."""

    def evaluated(score):
        cfg = load_config(ALIGN, [f"train.output_dir={tmp_path}", "train.device=cpu"])
        sample = tools.report.DetectionSample()
        sample.reset()
        for image in shapes:
            sample.process([image], [{"instances": perfect(image, score)}])
        assert sample.evaluate() is None
        hook = tools.report.ReportWriter(cfg, sample)
        with EventStorage(9) as storage:
            storage.put_image = Mock(wraps=storage.put_image)
            hook.trainer = SimpleNamespace(storage=storage, iter=9, max_iter=100)
            hook.after_step()
        return (tmp_path / "report.html").read_text(), storage

    return evaluated


def test_measures_and_shows_the_detections_of_an_evaluation(evaluated, shapes):
    """Boxes without fault rank first or behind one false detection, and so all, or all but the last of an image, are
    among its N highest scores. The pictures are on the page and among TensorBoard's images."""
    objects = sum(not a["iscrowd"] for image in shapes for a in image["annotations"])
    images = sum(any(not a["iscrowd"] for a in image["annotations"]) for image in shapes)
    for score, recall in ((0.9, 1.0), (0.2, 0.0)):
        page, storage = evaluated(score)
        latest = {name: value for name, (value, _) in storage.latest().items()}
        assert latest["alignment/matched_iou"] == pytest.approx(1, abs=1e-5)
        assert latest["alignment/matched_score"] == pytest.approx(score, abs=1e-5)
        assert latest["alignment/expected_error"] == pytest.approx(1 - score, abs=1e-5)
        drawn = len(shapes) + objects * (score > 0.3)  # in every image a false one too
        assert latest["alignment/boxes_per_object"] == pytest.approx(drawn / objects)
        if recall:
            assert latest["alignment/best_in_top_n"] == 1
        else:  # scores are equal: the false one pushes all of them down by one
            assert latest["alignment/best_in_top_n"] == pytest.approx(1 - images_of_one(shapes) / objects)
    assert images and f"{objects} objects" in page
    assert page.count("data:image/jpeg;base64,") == 2 * len(shapes)
    name, picture = storage.put_image.call_args.args
    assert name == "ground_truth_and_predictions" and picture.dtype == np.uint8 and picture.shape[0] == 3


def images_of_one(shapes):
    """How many images have a single object, which a false detection then keeps out of the top 1."""
    return sum(sum(not a["iscrowd"] for a in image["annotations"]) == 1 for image in shapes)


def test_page_needs_nothing_but_itself(evaluated):
    """No script, no link, no address: what it shows is in it."""
    page, _ = evaluated(0.9)
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert set(re.findall(r'src="([^,]*)', page)) == {"data:image/jpeg;base64", "data:image/png;base64"}


def test_detections_with_one_box_are_one_query(tools):
    """A query may be detected as two classes; what it was not detected as counts as its image's lowest score."""
    found = Instances(
        (100, 200),
        pred_boxes=Boxes(torch.tensor([[0.0, 0, 100, 50], [100.0, 50, 200, 100], [0.0, 0, 100, 50]])),
        scores=torch.tensor([0.9, 0.2, 0.4]),
        pred_classes=torch.tensor([2, 0, 1]),
    )
    logits, boxes = tools.report.as_queries(found, 3)
    assert boxes.squeeze().tolist() == [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]
    expected = torch.tensor([[0.2, 0.4, 0.9], [0.2, 0.2, 0.2]])
    torch.testing.assert_close(logits.squeeze().sigmoid(), expected, atol=1e-3, rtol=0)


def test_written_at_each_evaluation_without_changing_the_training(train, tmp_path, capsys):
    """Weights and metrics with the report are those without; one log line names it."""
    with_report = train(folder="with")
    assert capsys.readouterr().out.count("report.html, in ") == 1
    without = train("train.report.enabled=False", folder="without")
    assert not (without / "report.html").exists()
    weights = [torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (with_report, without)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    page = (with_report / "report.html").read_text()
    assert "All 6 iterations are done" in page and 'http-equiv="refresh"' not in page
    rows = training.read_metrics(with_report / "metrics.json")
    table = re.findall(r'<th scope="row">(\d+)</th>(.*?)</tr>', page)
    assert [int(iteration) for iteration, _ in table] == [6, 3]
    assert f"{rows[2]['bbox/AP']:.1f}".replace("-", "&minus;") in table[1][1]
    assert "max_iter: 6" in page and "PyTorch" in page and describe().removeprefix("platform: ") in html.unescape(page)


def test_a_page_of_a_stopped_training_says_so(train, tools, tmp_path, monkeypatch):
    """Until it is resumed: then the images of the last evaluation stay until the next one."""
    monkeypatch.setenv("FAIL_AT", "4")
    with pytest.raises(SystemExit):
        train()
    path = tmp_path / "toy/report.html"
    page = path.read_text()
    assert "Stopped at iteration 4 of 6 (67%)" in page
    assert "were left" not in page and 'http-equiv="refresh"' not in page
    samples = '<h2>Predictions beside ground truth</h2>\n<p class="faint">After 3 iterations</p>\n'
    path.write_text(page.replace("<h2>Curves</h2>", f"{samples}<h2>Curves</h2>"))
    monkeypatch.delenv("FAIL_AT")
    pages = []
    write = tools.report.ReportWriter._write

    def kept(self, *args):
        written = write(self, *args)
        pages.append(path.read_text())
        return written

    monkeypatch.setattr(tools.report.ReportWriter, "_write", kept)
    words = [f"train.output_dir={tmp_path}/toy", "train.report.enabled=True", "--resume"]
    tools.train_net.main(["--config-file", TOY, *words])
    first, last = pages[0], pages[-1]
    assert "Iteration 4 of 6" in first and "Stopped" not in first and first.count(samples) == 1
    assert "All 6 iterations are done" in last


@pytest.mark.parametrize("broken", ["render", "read_metrics"])
def test_an_error_in_it_is_logged_and_the_training_goes_on(train, monkeypatch, capsys, broken):
    def fail(*args, **kwargs):
        raise RuntimeError("no ink")

    monkeypatch.setattr(training, broken, fail)
    folder = train()
    assert (folder / "model_final.pth").exists()
    assert "Could not write report.html; the training goes on" in capsys.readouterr().out
    assert "no ink" in (folder / "log.txt").read_text()


def test_an_error_in_the_sample_leaves_the_evaluation_alone(tools, capsys):
    """Detections that are not what detectors give, such as none, are not kept."""
    sample = tools.report.DetectionSample()
    assert isinstance(sample, DatasetEvaluator)
    sample.reset()
    sample.process([[1, 2]], [{"score": 1}])
    sample.process([{"no": "id"}], [{"instances": Instances((1, 1))}])
    sample.evaluate()
    assert sample.detections == {}


def test_configs_without_the_switch_have_a_report(tools):
    """detectron2's common train config does not know it."""
    cfg = load_config(TOY, [])
    assert not tools.report.build_report(cfg)
    del cfg.train.report
    assert tools.report.build_report(cfg)


def test_metrics_of_a_resumed_run_are_one_curve(tmp_path):
    """What was done again replaces what was there; lines that a crash left behind are passed over."""
    path = tmp_path / "metrics.json"
    assert training.read_metrics(path) == []
    lines = [{"iteration": i, "loss": 1} for i in (0, 1, 2, 3)] + [{"iteration": i, "loss": 2} for i in (2, 4)]
    text = "\n".join(map(json.dumps, lines)) + '\n{"iteration": 5, "lo\n[1]\n{"iteration": 6, "loss": null}\n'
    path.write_text(text)
    rows = training.read_metrics(path)
    assert [(row["iteration"], row["loss"]) for row in rows] == [(0, 1), (1, 1), (2, 2), (4, 2), (6, None)]
    path.write_text(text + '{"iteration": 0, "loss": 3}\n')
    assert training.read_metrics(path) == [{"iteration": 0, "loss": 3}]


def test_losses_are_told_apart_by_kind_branch_and_layer():
    """Names of DINO, with denoising and encoder, and of H-DETR; the one without a number is the last layer's."""
    names = {"loss_class", "loss_class_0", "loss_class_10", "loss_class_2", "loss_class_enc", "loss_bbox_dn_0"}
    names |= {"loss_bbox_dn", "loss_giou_0_one2many", "loss_giou_one2many", "lr", "total_loss", "loss"}
    assert training_curves._losses(names) == {
        ("class", ""): {
            "encoder": "loss_class_enc",
            "layer 1": "loss_class_0",
            "layer 2": "loss_class_2",
            "layer 3": "loss_class_10",
            "layer 4": "loss_class",
        },
        ("bbox", "dn"): {"layer 1": "loss_bbox_dn_0", "layer 2": "loss_bbox_dn"},
        ("giou", "one2many"): {"layer 1": "loss_giou_0_one2many", "layer 2": "loss_giou_one2many"},
    }


def test_what_does_not_exist_is_a_dash_and_never_the_best():
    """A metric without objects is nan or null; 0.0 is no best value to be proud of; classes are sorted by AP."""
    nan = float("nan")
    rows = [
        {"iteration": 1, "bbox/AP": 0.01, "bbox/APl": nan, "bbox/APs": 3.0, "bbox/AP-a <b>": 1.0, "bbox/AP-c": 2.0},
        {"iteration": 3, "bbox/AP": 0.02, "bbox/APl": None, "bbox/APs": nan, "bbox/AP-a <b>": nan, "bbox/AP-c": 0.5},
    ]
    table = training._evaluations(rows, 4)
    assert "nan" not in table and table.count("<b>") == 1 and "<b>3.0</b>" in table and "APl" not in table
    classes = training._classes(rows, 4)
    assert classes.index(">c<") < classes.index("a &lt;b&gt;") and "nan" not in classes
    assert "<td>&ndash;</td><td>1.0 <small>2</small></td>" in classes
    assert not training._classes([{"iteration": 1, "bbox/AP": 1.0, "bbox/AP-only": 1.0}], 4)


def test_long_curves_are_averaged_and_short_ones_are_not():
    count = 4 * training_curves.MOST_POINTS
    rows = [{"iteration": i, "x": float(i % 2), "y": None if i else 2.0} for i in range(count)]
    assert training_curves.series(rows, "y") == [(0, 2.0)]
    points = training_curves.series(rows, "x")
    assert len(points) == training_curves.MOST_POINTS and {y for _, y in points} == {0.5}
    assert points[0][0] == 1.5


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_live_line_on_a_terminal_makes_way_for_the_log(train, tools, monkeypatch):
    """Erased lines aside, the terminal shows the log, line by line, without the figures that the live line shows."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(tools.live_line, "SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    train()
    text = terminal.getvalue()
    live = [part.split("\n")[0] for part in text.split("\r\x1b[K") if re.match(r"\d+/6 \(", part)]
    assert len(live) == 6 and all(len(line) < 60 for line in live)
    assert live[1].startswith("2/6 (33%)  ") and "total_loss" in live[1] and "class_0" not in live[1]
    left = re.sub(r"[^\n]*\r\x1b\[K", "", text)
    lines = re.sub(r"\x1b\[\d*m", "", left).splitlines()
    assert not any(re.search(r"\d+/6 \(", line) for line in lines)
    assert sum("Evaluation after" in line for line in lines) == 2
    assert not any("d2.utils.events]" in line for line in lines)


def test_no_live_line_elsewhere(train, capsys):
    """A log file has plain lines."""
    train()
    assert "\r" not in capsys.readouterr().out


def test_sum_comes_first_and_other_layers_are_left_out(tools):
    names = ["loss_class", "loss_class_0", "lr", "total_loss", "loss_bbox_dn", "loss_bbox", "loss_class_enc"]
    assert tools.live_line.main_losses(names) == ["total_loss", "loss_bbox", "loss_class"]
