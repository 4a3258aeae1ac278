"""`align-detr errors`: thresholds and kinds of error of a training, and the threshold as a default."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import oracle
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import detrkit
from detrkit.commands import demo, errors
from detrkit.commands import train as train_net
from detrkit.inference.sources import stored_threshold
from tests.detrkit.inference.conftest import write_run

CONFIG = str(Path(__file__).with_name("oracle_config.py"))
LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")
ONNX = pytest.param(".onnx", marks=pytest.mark.engine("detrex's own modules are not exported: the engine's are"))
SUFFIXES = (".safetensors", ONNX)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a training whose detector finds everything with the score 0.9, with ids of the user's file."""
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    root = tmp_path / "data"
    oracle.draw(root)
    for split in ("train", "val"):
        oracle.annotate(
            root, f"{split}.json", {7: "cat", 2: "dog", 5: "eel"}, image_id=lambda number: f"image {number}"
        )
    monkeypatch.setenv("ORACLE", str(root))
    monkeypatch.setenv("ORACLE_NAMES", "dog,eel,cat")  # in order of the ids
    words = [f"train.output_dir={tmp_path / 'run'}", "train.report.enabled=True"]
    train_net.train_net(["--config-file", CONFIG, *words])
    yield tmp_path / "run"
    for name in ("oracle_train", "oracle_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_training_report_command_and_python_agree(run, capsys):
    """The same figures in the folder after the training, from the command and from Python: none of the errors."""
    written = json.loads((run / "errors.json").read_text())
    assert written["score_threshold"] == pytest.approx(0.9) and written["f1"] == 1 and written["AP"] == 1
    assert {entry["count"] for entry in written["errors"].values()} == {0}
    assert written["confusion"]["matrix"] == [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]]
    assert [part["name"] for part in written["classes"]] == written["confusion"]["names"][:3] == ["dog", "eel", "cat"]
    page = (run / "report.html").read_text()
    assert "Threshold and errors" in page and re.search(r"highest F1, 0\.9, precision is 1\.00", page)
    assert detrkit.errors_of_run(run, config=CONFIG) == written
    capsys.readouterr()
    errors.main([str(run), "--config-file", CONFIG, "--output", str(run / "other.json")])
    text = capsys.readouterr().out
    assert re.search(r"\| all +\| +12 \| +100\.00 \| +0\.90 \| +1\.00 \| +1\.00 \| 1\.00 \|", text)
    assert json.loads((run / "other.json").read_text()) == written


def test_changed_detections_are_counted(run, tmp_path):
    """One detection of another class, one far off, one left out."""
    results = json.loads((run / "coco_instances_results.json").read_text())
    ids = {entry["category_id"] for entry in results}
    results[0]["category_id"] = next(iter(ids - {results[0]["category_id"]}))
    results[4]["bbox"][0] += 400
    (tmp_path / "other.json").write_text(json.dumps(results[:-1]))
    files = {"results": tmp_path / "other.json", "output": tmp_path / "errors.json"}
    summary = detrkit.errors_of_run(run, config=CONFIG, **files)
    counts = {name: entry["count"] for name, entry in summary["errors"].items() if entry["count"]}
    assert counts == {"classification": 1, "background": 1, "missed": 2}
    assert all(summary["errors"][name]["AP_cost"] > 0 for name in ("classification", "missed"))


@pytest.mark.parametrize("words, message", [
    (["nowhere"], "error: no such folder: nowhere\n"),
    (["empty"], "error: empty is not the folder of a training: it has no config.yaml\n"),
    (["bare"], "error: bare/coco_instances_results.json is not there: `align-detr eval bare` writes it\n"),
])  # fmt: skip
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_run(tmp_path / "bare")
    with pytest.raises(SystemExit):
        errors.main(words)
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_threshold_goes_with_the_file(tmp_path, suffix):
    """Folder, exported file and drawing use the chosen threshold; without one it is 0.3, and an option wins."""
    if suffix == ".onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    folder = write_run(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    assert detrkit.Detector(folder, device="cpu").score_threshold == 0.3
    found = next(detrkit.Detector(folder, device="cpu")(noise, 0.0))
    chosen = float(found.scores[4])
    (folder / "errors.json").write_text(json.dumps({"score_threshold": chosen}))
    file = detrkit.export(folder, tmp_path / f"model{suffix}").path
    detector = detrkit.Detector(file, device="cpu")
    assert detector.score_threshold == chosen
    assert next(detector(noise)).scores.min() >= chosen > next(detector(noise, 0.0)).scores.min()
    Image.fromarray(noise).save(tmp_path / "a.png")
    counts = []
    for source in (folder, file):
        for options in ([], ["--score-threshold", "0"]):
            target = tmp_path / "found.json"
            demo_words = [str(source), "--input", str(tmp_path / "a.png"), "--no-pictures", "--json", str(target)]
            with pytest.raises(SystemExit) as ended:
                demo.main([*demo_words, *options])
            assert ended.value.code == 0
            counts.append(len(json.loads(target.read_text())))
    assert 1 <= counts[0] <= 5 and counts[1] > 5 and counts[2] <= 5 < counts[3]


def test_damaged_thresholds_are_not_used(tmp_path, caplog):
    """A folder falls back on the default with a warning; weights elsewhere have nothing to do with the file."""
    folder = write_run(tmp_path / "run")
    for content, is_warned in (("{", True), ('{"score_threshold": 3}', False), ('{"score_threshold": null}', False)):
        (folder / "errors.json").write_text(content)
        caplog.clear()
        assert stored_threshold(folder / "model_final.pth") is None
        assert bool(caplog.records) == is_warned
    (tmp_path / "errors.json").write_text('{"score_threshold": 0.5}')
    shutil.copy(folder / "model_final.pth", tmp_path)
    assert stored_threshold(tmp_path / "model_final.pth") is None
