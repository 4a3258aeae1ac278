"""The blocks of README and of several pages of docs are run, one after the other, each page in its own folder."""

import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .detrkit.inference.conftest import write_run
from .detrkit.weights.file_server import serving
from .detrkit.weights.small_models import random_file

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
README_AT_A_SMALL_SIZE = {"--data mine  ": f"align_detr_tiny --data mine {SMALL}  "}


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


@pytest.fixture
def published(folder, monkeypatch):
    """A server on this machine has a small detector in place of the published weights that the pages name."""
    state = random_file("mmdet_dino", folder / "theirs.pth", num_classes=80)
    with serving() as server:
        server.files["/small.pth"] = (folder / "theirs.pth").read_bytes()
        entry = {"url": f"{server.url}/small.pth", "config": "dino_tiny", "detector": "Align-DETR", "backbone": "R50"}
        (folder / "zoo.yaml").write_text(json.dumps({"align_detr_r50_4scale_12ep": entry}))
        monkeypatch.setenv("ALIGN_DETR_ZOO", str(folder / "zoo.yaml"))
        monkeypatch.setenv("ALIGN_DETR_CACHE", str(folder / "cache"))
        yield state


def picture(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(path)
    return Image.open(path)


def shell(text):
    done = subprocess.run(["bash", "-ec", SHELL + text], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{text}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def run_blocks(page, names, changes, without=None):
    """Runs them, those in Python in `names`, without those that hold a word; returns how many it ran of each kind."""
    kinds = []
    for kind, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if without and without in text:
            continue
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
def test_readme(folder, published):
    """Protects the first ten minutes."""
    image = picture(folder / "street.jpg")
    shell("align-detr make-data --synthetic --train 16 --val 4 --output mine")
    names = {"array": np.asarray(image), "pil_image": image}
    kinds = run_blocks("README.md", names, README_AT_A_SMALL_SIZE)
    assert kinds == {"python": 1, "bash": 4} and names["detections"].width == 160
    assert (folder / "output/demo/street.png").is_file() and (folder / "mine.onnx").is_file()


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
    assert kinds == {"python": 7, "bash": 4}
    assert (folder / "drawn.png").is_file() and (folder / "drawn/street.png").is_file()
    assert len(names["results"]) == len(names["detections"].to_coco(0)) * 2


@pytest.mark.slow
def test_the_page_on_serving(folder):
    """Protects who serves a detector, and who has large images or films."""
    pytest.importorskip("uvicorn")
    cv2 = pytest.importorskip("cv2")
    write_run(folder / "output/mine")
    image = picture(folder / "street.jpg")
    film = cv2.VideoWriter(str(folder / "street.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, image.size)
    for _ in range(3):
        film.write(np.asarray(image))
    film.release()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    program = f"exec {sys.executable} -m align_detr serve"  # so that $! is the server, not a shell around it
    kinds = run_blocks("docs/serving.md", names := {}, {"8001": port, "align-detr serve output": f"{program} output"})
    assert kinds == {"bash": 3, "python": 3} and names["detections"].width == 160
    assert (folder / "drawn/street.webm").is_file() and names["outcome"].frames == 3


@pytest.mark.slow
def test_the_page_on_runtimes(folder):
    """Protects who deploys with OpenVINO, or with int8."""
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    write_run(folder / "output/align_detr_tiny")
    shell("align-detr make-data --synthetic --train 2 --val 2")
    for number, name in enumerate(("street.jpg", "pictures/1.png", "pictures/2.png")):
        picture(folder / name, number)
    kinds = run_blocks("docs/runtimes.md", names := {}, {"--repeats 7": "--repeats 1"})
    assert kinds == {"bash": 5, "python": 1} and (folder / "drawn/street.png").is_file()
    assert names["by_openvino"].class_names == names["by_onnx_runtime"].class_names


@pytest.mark.slow
def test_the_page_on_python(folder):
    """Protects who trains and exports from a notebook or a script."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    picture(folder / "street.jpg")
    shell("align-detr make-data --synthetic --train 16 --val 4")
    shell("align-detr make-data --synthetic --train 16 --val 4 --output mine")
    kinds = run_blocks("docs/python.md", names := {}, {"max_iter=100": "max_iter=2"})
    assert kinds == {"python": 4} and "AP" in names["results"]["bbox"] and names["detections"].width == 160


@pytest.mark.slow
def test_the_page_on_weights(folder, published):
    """Protects who begins with published weights: zoo, fine-tuning, other code bases, and back."""
    picture(folder / "street.jpg")
    shell("align-detr make-data --synthetic --train 16 --val 4 --output mine")
    for path in folder.glob("mine/annotations/*.json"):
        content = json.loads(path.read_text())
        for category, name in zip(content["categories"], ("dog", "helmet", "person"), strict=True):
            category["name"] = name
        path.write_text(json.dumps(content))
    small = {
        "dino_r50_4scale_12ep --checkpoint": "dino_tiny --checkpoint",
        'config="dino_r50_4scale_12ep"': 'config="dino_tiny"',
        "train --data mine": f"train --data mine {SMALL} train.output_dir=output/mine",
    }
    kinds = run_blocks("docs/weights.md", names := {}, small)
    assert kinds == {"bash": 6, "python": 1} and names["found"].width == 160
    assert (folder / "output/demo/street.png").is_file() and (folder / "detector.safetensors").is_file()
    back = torch.load(folder / "back.pth", weights_only=True)["state_dict"]
    theirs = torch.load(folder / "theirs.pth", weights_only=True)["state_dict"]
    assert back.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in back.items())
    trained = torch.load(folder / "output/mine/model_final.pth", weights_only=True)
    classes = [name for _, name in trained["trainer"]["hooks"]["RunState"]["facts"]["classes"]]
    for name, row in {"dog": 16, "person": 0}.items():
        moved = trained["model"]["class_embed.0.weight"][classes.index(name)] - published["class_embed.0.weight"][row]
        assert moved.abs().max() < 0.01


@pytest.mark.slow
def test_the_page_on_finetuning(folder):
    """Protects who adapts a detector: each tool of the page, one after the other."""
    shell("align-detr make-data --synthetic --train 16 --val 4 --output mine")
    kinds = run_blocks("docs/finetuning.md", names := {}, {"--epochs 2": f"{SMALL} {NARROW}"})
    assert kinds == {"bash": 9, "python": 5}
    pages = ("output/mine/explore.html", "mistakes.html", "worst.html")
    written = ("jitter.png", "mosaic.png", "output/options/model_final.pth", "output/logged/metrics.csv")
    written += ("output/mixed/model_final.pth", "output/muon/model_final.pth")
    for name in (*pages, *written, "published/README.md"):
        assert (folder / name).is_file()
    assert names["detector"].class_names == ["circle", "square", "triangle"]
    stored = json.loads((folder / "output/mine/errors.json").read_text())["score_threshold"]
    assert names["detector"].score_threshold == (0.3 if stored is None else stored)


@pytest.mark.slow
def test_the_page_on_your_own_detr(folder):
    """Protects who takes the supervision into another code base: both losses fall on a plain DETR."""
    kinds = run_blocks("docs/own_detr.md", names := {}, {}, without="transformers")
    assert kinds == {"python": 3}
    for history in (names["history"], names["other_history"]):
        assert np.mean(history[-10:]) < 0.8 * np.mean(history[:10])


@pytest.mark.slow
def test_your_own_detr_of_transformers(folder):
    """Protects who sets a loss function in Hugging Face's detectors: four trainings, whose losses fall."""
    for library in ("transformers", "accelerate"):
        pytest.importorskip(library, reason=f"{library} is not installed; it is in no extra")
    kinds = run_blocks("docs/own_detr.md", names := {}, {})
    assert kinds == {"python": 5, "bash": 1}
    assert len(names["histories"]) == 2
    for history in (history for pair in names["histories"].values() for history in pair):
        assert len(history) == 6 and history[-1] < 0.8 * history[0]
