"""Small versions of the configs on Swin, ViT and timm: they train, resume, evaluate, and agree as ONNX."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from detrkit import evaluate, train
from detrkit.datasets.classes import Classes
from detrkit.datasets.small import make

sys.path.insert(0, str(Path(__file__).parent))

from small_backbones import ROWS, small

ROOT = Path(__file__).resolve().parents[2]
FAST = {"align_detr_swin_tiny_224_4scale_12ep", "align_detr_vitdet_base_4scale_12ep"}
CASES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ROWS]
NAMES = Classes(("red", "green", "blue"), (4, 5, 6))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Eight drawn images to train on and two to evaluate on."""
    folder = tmp_path_factory.mktemp("data")
    make(folder, train=8, val=2)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_small_version_trains_resumes_and_evaluates(name, drawn, tmp_path, monkeypatch):
    """Two iterations, a third one on from there, and an evaluation that gives what the training ended with."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(drawn))
    cfg = small(name)
    cfg.train.output_dir = str(tmp_path / "run")
    train(cfg)
    cfg = small(name)
    cfg.train.output_dir = str(tmp_path / "run")
    cfg.train.max_iter = 3
    results = train(cfg, resume=True, allow_changes=True)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    losses = {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}
    assert losses.keys() == {0, 1, 2} and all(np.isfinite(list(losses.values())))
    again = small(name)
    again.train.output_dir = str(tmp_path / "again")
    found = evaluate(again, tmp_path / "run/model_final.pth")
    assert found["bbox"] == pytest.approx(results["bbox"], rel=0, abs=0, nan_ok=True)


@pytest.mark.engine("detrex's own modules keep numbers of one image's size: the engine's are exported")
@pytest.mark.parametrize("name", CASES)
def test_a_small_version_agrees_as_onnx(name, tmp_path):
    """A graph for any size, traced at one: ONNX Runtime finds what PyTorch finds at others, odd ones too."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from detrkit.config.exported import input_size
    from detrkit.inference.agreement import agreement_table, compare
    from detrkit.inference.graph import Shape, metadata_of, write_onnx
    from detrkit.inference.pytorch import PyTorchNetwork
    from detrkit.inference.runtimes import OnnxNetwork

    cfg = small(name)
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        for head in model.class_embed:  # scores are small at first
            head.bias.add_(3.0)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    network = PyTorchNetwork(cfg, str(tmp_path / "model.pth"), NAMES, "cpu", "float32")
    shape = Shape(None, None)
    metadata = metadata_of(NAMES, input_size(cfg), shape, "RGB")
    write_onnx(network.model, tmp_path / "model.onnx", metadata, shape, (64, 96))
    exported = OnnxNetwork(tmp_path / "model.onnx", "cpu")
    random = np.random.default_rng(0)
    sizes = (72, 96), (90, 70), (64, 64)
    images = [(str(size), random.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    results = compare(network, exported, images)
    assert all(result.agrees for result in results), agreement_table(results, ("PyTorch", "ONNX Runtime"))
    assert sum(result.counts[0] for result in results) > 20
