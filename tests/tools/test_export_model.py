"""`tools/export_model.py`: one file from a training, and what takes it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align_detr import Detector

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("deployment_conftest", HERE.parent / "deployment/conftest.py")
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return small.write_run(tmp_path_factory.mktemp("runs") / "dino_small")


@pytest.fixture
def export(capsys):
    import export_model

    def export(*words):
        export_model.main([str(word) for word in words])
        return capsys.readouterr().out.strip()

    return export


def test_an_exported_file_and_the_demo(export, run_folder, tmp_path, capsys):
    """The demo takes the file alone, with its names of classes, and finds what `Detector` finds."""
    import demo

    output = tmp_path / "model.safetensors"
    assert export(run_folder, "--output", output).endswith("DINO with 3 classes")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / "1.png")
    results = tmp_path / "results.json"
    options = ["--output", tmp_path / "out", "--json", results, "--score-threshold", 0.1, "train.device=cpu"]
    with pytest.raises(SystemExit) as stop:
        demo.main([str(word) for word in ("--checkpoint", output, "--input", tmp_path / "1.png", *options)])
    assert stop.value.code == 0, capsys.readouterr().err
    entries = json.loads(results.read_text())
    (found,) = Detector(output, device="cpu")(tmp_path / "1.png", 0.1)
    assert len(entries) == len(found) > 3
    for entry, expected in zip(entries, found.to_coco(1), strict=True):
        assert entry["category_id"] == expected["category_id"]
        assert entry["bbox"] == pytest.approx(expected["bbox"], abs=0.05)


def test_config_and_checkpoint(export, run_folder, tmp_path):
    """Instead of a folder; changes to the config go into the file."""
    config = ["--config-file", run_folder / "config.yaml", "--checkpoint", run_folder / "model_final.pth"]
    change = "dataloader.test.mapper.augmentation.0.short_edge_length=48"
    export(*config, "--output", tmp_path / "model.safetensors", change)
    detector = Detector(tmp_path / "model.safetensors", device="cpu")
    assert detector._network.prepare(np.zeros((50, 100, 3), np.uint8)).shape == (3, 48, 96)


def test_mistakes(export, run_folder, tmp_path, capsys):
    def error(*words):
        with pytest.raises(SystemExit):
            export(*words)
        (line,) = [text for text in capsys.readouterr().err.splitlines() if "error: " in text]
        return line

    output = ["--output", tmp_path / "x.safetensors"]
    assert "a name that ends in" in error(run_folder, "--output", tmp_path / "x.bin")
    assert "give the folder of a training, or" in error(*output)
    assert "has a config of its own" in error(run_folder, *output, "model.num_queries=3")
    assert "no such folder or file" in error(tmp_path / "nowhere", *output)
    assert "one source, please" in error(run_folder, run_folder, *output)
    export(run_folder, *output)
    assert "is where the weights come from" in error(tmp_path / "x.safetensors", *output)
    assert sys.modules["export_model"].FORMATS
