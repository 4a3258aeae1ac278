"""Files of strangers: they run nothing, write nowhere else, and end in one line if they cannot be used."""

import html
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import mixed_data
import numpy as np
import pytest
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent


def test_mutated_files_work_or_end_in_one_line(monkeypatch):
    """A hundred of the ten thousand that `python tests/stress/fuzz.py` makes."""
    import fuzz

    monkeypatch.setenv("MIXED_DATA", "")
    counts, wrong = fuzz.run(100, seed=1)
    assert not wrong, wrong[0]
    assert sum(count["works"] for count in counts.values()) > 5


@pytest.mark.parametrize(
    "text, said",
    [
        ("model: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
        ("model: !!python/name:os.system", "it wants to call os.system: refused"),
        ("model: {_target_: os.system, command: touch ran}", "it wants to call os.system: refused"),
        ("model: {_target_: detectron2.data.build.logging.os.system, command: x}", "refused"),
        ("model: \"${oc.decode:'{_target_: os.system, command: touch ran}'}\"", "it wants to resolve .*: refused"),
        ("x: oc\nmodel: \"${${x}.decode:'[1]'}\"", "it wants to resolve .*: refused"),
        ("\n".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else '1'] * 9)}]" for n in range(8)), "more values"),
        ("x: " + "[" * 5000, "nested more deeply"),
        ("x: [1,", "not a config in YAML"),
    ],
)
def test_a_yaml_config_runs_nothing(tmp_path, monkeypatch, text, said):
    """detectron2 itself reads such files by yaml.unsafe_load, and instantiates any target."""
    from detrkit.config.load import load_config

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        load_config("config.yaml", [])
    assert "config.yaml" in str(error.value) and not (tmp_path / "ran").exists()


def test_a_pickle_runs_nothing(tmp_path):
    """detectron2 itself unpickles what ends in .pkl as it comes. One of arrays is read."""
    from detrkit.training.checkpoints import SafeCheckpointer

    class Program:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    model = torch.nn.Linear(2, 1)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": Program()}))
    with pytest.raises(ValueError, match="bad.pkl wants to run"):
        SafeCheckpointer(model).load(str(tmp_path / "bad.pkl"))
    assert not (tmp_path / "ran").exists()
    arrays = {"weight": np.ones((1, 2), np.float32), "bias": np.zeros(1, np.float32)}
    (tmp_path / "good.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}))
    SafeCheckpointer(model).load(str(tmp_path / "good.pkl"))
    assert model.weight.tolist() == [[1, 1]]


def test_a_saved_config_is_read(tmp_path):
    """The config.yaml of a training can be trained from again, and evaluated: its datasets are known, though no program
    registers them any more."""
    from detectron2.config import LazyConfig, instantiate
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from detrkit.config.load import load_config

    tiny = load_config(str(HERE.parents[2] / "projects/align_detr/configs/align_detr_tiny.py"), [])
    LazyConfig.save(tiny, str(tmp_path / "config.yaml"))
    for name in ("tiny_coco_train", "tiny_coco_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    again = load_config(str(tmp_path / "config.yaml"), ["train.device=cpu", "model.num_queries=5"])
    assert type(instantiate(again.model)).__name__ == "DINO"
    assert {again.dataloader.test.dataset.names, again.dataloader.train.dataset.names} <= set(DatasetCatalog.list())


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda all: all["categories"][0].update(name=["a"]), "categories[0] has name ['a'], not a text"),
    ],
)
def test_the_mistake_in_an_annotation_file_is_named(tmp_path, change, said):
    """The three that mutation found behind reading, in the evaluation: the entry, its value, and what it should be."""
    from detrkit.datasets.annotations import annotation_problem

    mixed_data.write(tmp_path / "data", train=2, val=2)
    path = tmp_path / "data/annotations/val.json"
    assert annotation_problem(path) is None
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert said in annotation_problem(path)


def test_a_decompression_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """A file of a few kilobytes that would take gigabytes of memory: the image is named instead."""
    from detrex.data import DetrDatasetMapper

    from detrkit.training.stream import SampleStream

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (100, 100)).save(tmp_path / "bomb.png")
    image = {"file_name": str(tmp_path / "bomb.png"), "width": 100, "height": 100, "annotations": []}
    stream = SampleStream([image], DetrDatasetMapper([], None), seed=0)
    with pytest.raises(OSError, match="bomb.png: .*exceeds limit"):
        next(iter(stream))


@pytest.mark.slow
def test_names_in_a_dataset_stay_names(tmp_path, monkeypatch):
    """Tags, formulas and `..` in the names of classes and images: shown as they are in the report of a training, the
    sheet of predictions and the pictures of the demo, and nothing is written outside of the run's folder."""
    hostile = ["<script>alert(1)</script>", "$\\frac{a}$ & <b>", "../../up"]
    mixed_data.write(tmp_path / "data", train=4, val=2)
    for split in ("train", "val"):
        path = tmp_path / f"data/annotations/{split}.json"
        content = json.loads(path.read_text())
        for category, name in zip(content["categories"], hostile, strict=True):
            category["name"] = name
        picture = content["images"][0]
        renamed = f"<img src=x onerror=alert(1)> $^$ {split}.png"
        (tmp_path / "data" / split / picture["file_name"]).rename(tmp_path / "data" / renamed)
        picture["file_name"] = f"../{renamed}"
        path.write_text(json.dumps(content))
    monkeypatch.setenv("MIXED_DATA", str(tmp_path / "data"))
    before = set(tmp_path.rglob("*"))
    run = tmp_path / "run"
    config = ["--config-file", str(HERE / "mixed_config.py")]

    def tool(name, *arguments):
        command = [sys.executable, "-m", "align_detr", name, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2] / "projects")}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr

    short = ["train.max_iter=2", "train.eval_period=2", "train.report.enabled=True", f"train.output_dir={run}"]
    tool("train", *config, *short)
    results = ["--input", f"{run}/coco_instances_results.json", "--output", f"{run}/sheet.png"]
    tool("visualize-results", *config, "--dataset", "mixed_val", "--score-threshold", "0", *results)
    pictures = sorted((tmp_path / "data").glob("*val.png"))
    weights = ["--checkpoint", f"{run}/model_final.pth", "--output", f"{run}/demo"]
    tool("demo", *config, *weights, "--score-threshold", "0", "--input", *map(str, pictures))
    page = (run / "report.html").read_text()
    assert "alert(1)" in html.unescape(page), "the report does not show these names, so it proves nothing"
    assert "<script>alert" not in page and "<img src=x" not in page
    assert [path.name for path in (run / "demo").iterdir()] == [pictures[0].name]
    outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(run)}
    assert outside == before
