"""From the folders that people have to a trained and evaluated model, by the commands of the README."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align_detr.commands import convert as tool

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize("make", [make_voc, make_yolo], ids=["voc", "yolo"])
def test_from_folder_to_evaluated_model(make, tmp_path, capsys):
    """Protects the way that the README shows: convert, paste the printed lines into a config, train, evaluate. A broken
    file on the way is told of, and does not stop it."""
    make(tmp_path / "mine")
    tool.main([str(tmp_path / "mine"), "--output", str(tmp_path / "coco")])
    printed = capsys.readouterr()
    (problem,) = printed.err.splitlines()
    assert problem.startswith(("broken annotation file: ", "broken image: ")) and "train0" in problem
    registrations = re.findall(r"^register_coco\(.*\)$", printed.out, re.MULTILINE)
    assert len(registrations) == 2 and "model.num_classes = 2" in printed.out

    shutil.copytree(ROOT / "projects/align_detr/configs", tmp_path / "configs")
    lines = [
        "from align_detr.data import register_coco",
        "from .align_detr_tiny import dataloader, lr_multiplier, model, optimizer, train",
        *registrations,
        'dataloader.train.dataset.names, dataloader.test.dataset.names = "coco_train", "coco_val"',
        "model.num_classes = 2",
    ]
    (tmp_path / "configs/mine.py").write_text("\n".join(lines))
    command = [sys.executable, "tools/train_net.py", "--config-file", f"{tmp_path}/configs/mine.py"]
    command += [f"train.output_dir={tmp_path}/model", "train.device=cpu", "train.report.enabled=False"]
    command += ["train.max_iter=2", "train.eval_period=2", "model.num_queries=20", "model.dn_number=4"]
    command += ["model.select_box_nums_for_evaluation=20"]  # more than there are is an error in detrex
    command += ["dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "model/metrics.json").read_text().splitlines()]
    assert np.isfinite(rows[-1]["bbox/AP"]) and {"bbox/AP-square", "bbox/AP-bar"} <= rows[-1].keys()
    results = json.loads((tmp_path / "model/coco_instances_results.json").read_text())
    assert {r["image_id"] for r in results} == {1, 2} and {r["category_id"] for r in results} <= {1, 2}


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
