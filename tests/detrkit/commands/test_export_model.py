"""`align-detr export`: one file from a training, and what takes it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align_detr import Detector

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("deployment_conftest", HERE.parent / "inference/conftest.py")
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return small.write_run(tmp_path_factory.mktemp("runs") / "dino_small")


@pytest.fixture
def export(capsys):
    from detrkit.commands import export as export_model

    def export(*words):
        export_model.main([str(word) for word in words])
        return capsys.readouterr().out.strip()

    return export


def test_an_exported_file_and_the_demo(export, run_folder, tmp_path, capsys):
    """The demo takes the file alone, with its names of classes, and finds what `Detector` finds."""
    from detrkit.commands import demo

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
    assert "no detector: give the folder of a training" in error(*output)
    assert "has a config of its own" in error(run_folder, *output, "model.num_queries=3")
    assert "no such folder, file or config" in error(tmp_path / "nowhere", *output)
    assert "is not a change as key=value" in error(run_folder, run_folder, *output)
    export(run_folder, *output)
    assert "is where the weights come from" in error(tmp_path / "x.safetensors", *output)
    assert "--dynamic is for .onnx, .xml, .pt2" in error(run_folder, *output, "--dynamic")
    assert "at least 1" in error(run_folder, "--output", tmp_path / "x.onnx", "--batch", 0, "--size", 0, 3)


def run_tool(*words):
    """In a process of its own, as it has to choose the platform before anything is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "ALIGN_DETR_PLATFORM"}
    environment["PYTHONPATH"] = str(HERE.parents[2] / "projects")
    command = [sys.executable, "-m", "align_detr", "export", *words]
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_onnx_that_is_checked(run_folder, tmp_path):
    """A file for images of any size, its agreement with PyTorch as a table; and a folder that shows nothing."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number, size in enumerate([(64, 96), (90, 60)]):
        pixels = random.integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(pixels).resize(size).save(tmp_path / f"pictures/{number}.png")
    output = tmp_path / "model.onnx"
    done = run_tool(run_folder, "--output", output, "--dynamic", "--check", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    weights, first, heads, _, values, verdict = done.stdout.splitlines()
    assert weights == f"weights: {run_folder / 'model_final.pth'}"
    assert first.endswith("DINO with 3 classes, any number of images of any size")
    assert "ONNX Runtime" in heads and values.split()[:2] == ["all", "2"]
    assert verdict.startswith("ONNX Runtime and PyTorch agree on 2 images: boxes differ by at most ")
    assert len(next(Detector(output, device="cpu")(tmp_path / "pictures/0.png", 0.1))) > 3
    (tmp_path / "none").mkdir()
    done = run_tool(run_folder, "--output", output, "--size", 64, 64, "--check", tmp_path / "none")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("no image in this folder")


def changed(folder, key, by):
    """The small detector with a number added to one of its weights."""
    from detrkit.inference.pytorch import PyTorchNetwork
    from detrkit.inference.sources import find_source

    small.write_run(folder)
    state = torch.load(folder / "model_final.pth", weights_only=True)
    state["model"][key] += by
    torch.save(state, folder / "model_final.pth")
    return PyTorchNetwork(*find_source(folder), "cpu", "float32")


def test_checking_leaves_out_broken_images(tmp_path, capsys, caplog):
    """They are named, and the others are compared; the last line is the verdict."""
    from detrkit.commands import export as export_model

    (tmp_path / "images").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / "images/2.jpg")
    content = (tmp_path / "images/2.jpg").read_bytes()
    (tmp_path / "images/1.jpg").write_bytes(content[: len(content) // 2])
    network = changed(tmp_path / "run", "class_embed.2.bias", 0)
    export_model.print_check(network, network, tmp_path / "images", "ONNX Runtime")
    assert f"left out {tmp_path / 'images/1.jpg'}: image file is truncated" in caplog.text
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "ONNX Runtime and PyTorch agree on 1 image: boxes differ by at most 0 px, scores by at most 0"
    (tmp_path / "images/2.jpg").unlink()
    with pytest.raises(ValueError, match="none of 1 image can be read, such as .*1.jpg"):
        export_model.print_check(network, network, tmp_path / "images", "ONNX Runtime")


def test_the_folder_to_check_on_comes_first(export, run_folder, tmp_path, capsys):
    """Before anything is exported."""
    output = tmp_path / "x.onnx"
    (tmp_path / "none").mkdir()
    for folder, said in (("none", "no image in this folder"), ("nowhere", "no such folder")):
        with pytest.raises(SystemExit):
            export(run_folder, "--output", output, "--check", tmp_path / folder)
        assert capsys.readouterr().err.splitlines()[-1] == f"error: --check {tmp_path / folder}: {said}"
        assert not output.exists()


@pytest.mark.engine("`align-detr export` starts itself on the engine, whose modules compute in float64 too")
@pytest.mark.parametrize(
    "reference, other, beside",
    [
        (0, ("class_embed.2.bias", 0.5), ("1 of 1", "0 of 1")),
        # In float32 scores of a million are a sixteenth apart: the order of the proposals, and with it which of them
        # gets which query's content, is chance. It is the same model.
        (("class_embed.3.bias", 1e6), 0, ("0 of 1", "1 of 1")),
    ],
    ids=["mistake", "rounding"],
)
def test_a_graph_that_differs_fails(tmp_path, capsys, reference, other, beside):
    """The check is one: it fails whatever the reason. Beside float64 it says which of the two is off, and a mistake in
    the graph looks other than float32 that cannot tell proposals apart."""
    from detrkit.commands import export as export_model

    networks = [
        changed(tmp_path / name, *(change or ("class_embed.2.bias", 0)))
        for name, change in (("reference", reference), ("other", other))
    ]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="disagree on 1 of 1 image: boxes differ by"):
        export_model.print_check(*networks, tmp_path, "ONNX Runtime")
    table, rounding = capsys.readouterr().out.split("\n\n")
    assert "1.png" in table
    heads, _, *rows = rounding.splitlines()
    assert heads.startswith("beside float64")
    for row, name, agrees in zip(rows, ("PyTorch", "ONNX Runtime"), beside, strict=True):
        assert row.startswith(name) and agrees in row
