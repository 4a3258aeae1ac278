"""The blocks of README, tutorial and docs/deploying.md are run, one after the other, each page in its own folder."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .detrkit.inference.conftest import write_run

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# `make demo` and `make test` are what CI runs, and installing is what it begins with.
SHELL = f"""
python() {{ {sys.executable} "$@"; }}
align-detr() {{ {sys.executable} -m align_detr "$@"; }}
make() {{ :; }}
pip() {{ :; }}
"""
SMALL = "train.max_iter=2 train.eval_period=0 train.report.enabled=False dataloader.test.num_workers=0"
NARROW = "model.embed_dim=128 model.position_embedding.num_pos_feats=64"  # as `make demo` and `make baseline` have it
# What takes eight GPUs or a day is done at a small size, and what the reader fills in is filled in.
README_AT_A_SMALL_SIZE = {
    "align_detr_r50_4scale_12ep.py --num-gpus 8": f"align_detr_tiny.py {SMALL}",
    "--config-file … --eval-only train.init_checkpoint=output/…/": "--config-file projects/align_detr/configs/"
    "align_detr_tiny.py --eval-only train.init_checkpoint=output/align_detr_tiny/",
    "--data mine  ": f"--data mine {SMALL}  ",
    "--config-file … --resume": f"--config-file projects/align_detr/configs/align_detr_tiny.py --resume {SMALL}",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout in which a reader has a picture of a street, an array and a PIL image."""
    for name in ("tools", "projects", "embedded", "configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "projects"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("TINY_COCO_ROOT", raising=False)
    monkeypatch.delenv("ALIGN_DETR_PLATFORM", raising=False)
    return tmp_path


def picture(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(path)
    return Image.open(path)


def shell(text):
    done = subprocess.run(["bash", "-ec", SHELL + text], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{text}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def run_blocks(page, names, changes):
    """Runs them, those in Python in `names`; returns how many there were of each kind."""
    kinds = []
    for kind, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        for line, instead in changes.items():
            text = text.replace(line, instead)
        kinds.append(kind)
        if kind == "python":
            exec(compile(text, page, "exec"), names)
        else:
            assert kind == "bash", kind
            shell(text)
    return Counter(kinds)


@pytest.mark.slow
def test_readme(folder):
    """Protects the first ten minutes."""
    image = picture(folder / "street.jpg")
    shell("align-detr make-data --synthetic")
    shell("align-detr make-data --synthetic --train 16 --val 4 --output mine")
    for config, name in {"align_detr_tiny": "demo", "dino_tiny": "baseline"}.items():
        shell(f"align-detr train {config} train.output_dir=output/{name} {SMALL} {NARROW}")
    kinds = run_blocks("README.md", {"array": np.asarray(image), "pil_image": image}, README_AT_A_SMALL_SIZE)
    assert kinds["python"] == 1 and kinds["bash"] >= 5


@pytest.mark.slow
def test_tutorial(folder):
    """Protects the way from a folder of pictures to an ONNX file."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    picture(folder / "street.jpg")
    shell("align-detr make-data --synthetic --train 16 --val 4 --output mine")
    kinds = run_blocks("docs/tutorial.md", names := {}, {})
    assert kinds == {"bash": 6, "python": 1}
    assert (folder / "sheet.png").is_file() and names["detections"].width == 160
    results = json.loads((folder / "output/mine/coco_instances_results.json").read_text())
    assert {entry["image_id"] for entry in results} == {1, 2, 3, 4}


@pytest.mark.slow
def test_the_page_on_deploying(folder):
    """Protects who puts a detector to use, with this package and without it."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_run(folder / "output/align_detr_tiny")
    for number, name in enumerate(("street.jpg", "cells.png", "pictures/1.png")):
        picture(folder / name, number)
    kinds = run_blocks("docs/deploying.md", names := {}, {})
    assert kinds == {"python": 6, "bash": 3}
    assert (folder / "drawn.png").is_file() and (folder / "drawn/street.png").is_file()
    assert len(names["results"]) == len(names["detections"].to_coco(0)) * 2
