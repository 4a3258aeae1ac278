"""Co-DINO on Swin, shrunk, as ONNX: ONNX Runtime finds what PyTorch finds."""

import numpy as np
import pytest
import torch

from detrkit.config.exported import input_size
from detrkit.datasets.classes import Classes
from detrkit.inference.agreement import agreement_table, compare
from detrkit.inference.graph import Shape, metadata_of, write_onnx
from detrkit.inference.pytorch import PyTorchNetwork
from detrkit.inference.runtimes import OnnxNetwork

from ..align_detr.small_backbones import small
from ..detrkit.inference.conftest import random_weights

NAMES = Classes(("red", "green", "blue"), (1, 2, 3))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The Swin-L row with a few channels, one layer of each kind, five levels and shifted windows."""
    cfg = small("co_dino_swin_large_5scale_12ep")
    path = tmp_path_factory.mktemp("swin") / "model.pth"
    torch.save({"model": random_weights(cfg)}, path)
    return PyTorchNetwork(cfg, str(path), NAMES, "cpu", "float32"), cfg


@pytest.mark.engine("detrex's own modules keep numbers of one image's size: the engine's are exported")
@pytest.mark.parametrize("shape", [Shape(None, None), pytest.param(Shape(1, (64, 80)), marks=pytest.mark.slow)])
def test_onnx_agrees(network, tmp_path, shape):
    """Images of several sizes, which pad Swin's windows differently; the training parts are not in the file."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network, cfg = network
    write_onnx(network.model, tmp_path / "m.onnx", metadata_of(NAMES, input_size(cfg), shape, "RGB"), shape, (64, 80))
    random = np.random.default_rng(0)
    sizes = [(70, 90), (90, 70), (64, 64), (50, 101)]
    pixels = [(str(size), random.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    results = compare(network, OnnxNetwork(tmp_path / "m.onnx", "cpu"), pixels)
    assert all(result.agrees for result in results), agreement_table(results, ("PyTorch", "ONNX Runtime"))
    assert sum(result.counts[0] for result in results) > 20
