"""Detectors as ONNX: what ONNX Runtime finds is what PyTorch finds, for every kind of detector and of shape."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from hypothesis import given
from hypothesis import strategies as st

import align_detr
from align_detr import Detector
from detrkit.config.exported import INPUT, input_size
from detrkit.datasets.classes import Classes
from detrkit.inference.agreement import agreement_table, compare
from detrkit.inference.float64 import convolve
from detrkit.inference.graph import Shape, metadata_of, write_onnx, write_program
from detrkit.inference.network import Predictions
from detrkit.inference.pytorch import PyTorchNetwork
from detrkit.inference.runtimes import OnnxNetwork, ProgramNetwork

from .conftest import KINDS, random_weights, small_config

pytestmark = pytest.mark.engine("detrex's own modules keep numbers of one image's size: the engine's are exported")
NAMES = Classes(("red", "green", "blue"), (4, 5, 6))
FIXED, FREE = Shape(1, (64, 96)), Shape(None, None)
MORE = [("h_detr", FREE), ("dab_detr", FREE)]
MORE += [("dino", FIXED), ("h_detr", Shape(3, None)), ("dab_detr", Shape(None, (80, 64)))]
CASES = [("dino", FREE), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """By kind: the detector in PyTorch, and its config."""
    networks = {}
    for kind in KINDS:
        cfg = small_config(kind)
        weights = tmp_path_factory.mktemp("weights") / "model.pth"
        torch.save({"model": random_weights(cfg)}, weights)
        networks[kind] = PyTorchNetwork(cfg, str(weights), NAMES, "cpu", "float32"), cfg
    return networks


def write(networks, kind, shape, path, writer=write_onnx):
    network, cfg = networks[kind]
    writer(network.model, path, metadata_of(NAMES, input_size(cfg), shape, "RGB"), shape, (64, 96))
    return network


@pytest.mark.parametrize("kind, shape", CASES)
def test_onnx_runtime_agrees(networks, pictures, tmp_path, kind, shape):
    """Same count above 0.05, boxes within half a pixel, scores within a thousandth; alone and in batches."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = write(networks, kind, shape, tmp_path / "model.onnx")
    exported = OnnxNetwork(tmp_path / "model.onnx", "cpu")
    assert exported.shape == shape and exported.classes == NAMES
    if shape.size is None:  # pictures become the same image in both
        assert all(np.array_equal(network.prepare(pixels), exported.prepare(pixels)) for pixels in pictures)
    results = compare(network, exported, [(str(n), pixels) for n, pixels in enumerate(pictures)])
    assert all(result.agrees for result in results), agreement_table(results, ("PyTorch", "ONNX Runtime"))
    assert sum(result.counts[0] for result in results) > 20
    same = pictures[::2][:3]
    images, sizes = [exported.prepare(pixels) for pixels in same], [pixels.shape[:2] for pixels in same]
    for count in range(1, 4) if shape.batch in (None, 3) else [1]:
        together = exported.detect(images[:count], sizes[:count])
        assert len(together) == count
        for found, image, size in zip(together, images, sizes, strict=False):
            (alone,) = network.detect([image], [size])
            assert np.allclose(np.sort(found.scores), np.sort(alone.scores), atol=1e-4)


def test_onnx_runtime_agrees_on_a_backbone_of_timm(timm, pictures, tmp_path):
    """EfficientNet-Lite pads each image by its size: the exported padding follows the size of the picture."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    cfg = small_config("dino_lite0")
    cfg.model.num_classes = len(NAMES.names)
    torch.save({"model": random_weights(cfg)}, tmp_path / "model.pth")
    network = PyTorchNetwork(cfg, str(tmp_path / "model.pth"), NAMES, "cpu", "float32")
    write_onnx(
        network.model, tmp_path / "model.onnx", metadata_of(NAMES, input_size(cfg), FREE, "RGB"), FREE, (64, 96)
    )
    exported = OnnxNetwork(tmp_path / "model.onnx", "cpu")
    results = compare(network, exported, [(str(n), pixels) for n, pixels in enumerate(pictures)])
    assert all(result.agrees for result in results), agreement_table(results, ("PyTorch", "ONNX Runtime"))
    assert sum(result.counts[0] for result in results) > 20


def test_detector_on_an_onnx_file(networks, pictures, tmp_path):
    """Pictures in, names of classes out, as with PyTorch; no config beside the file."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    write(networks, "dino", Shape(2, None), tmp_path / "model.onnx")
    detector = Detector(tmp_path / "model.onnx", device="cpu")
    assert detector.class_names == ["red", "green", "blue"]
    found = list(detector(pictures, 0.1, batch_size=8))
    assert len(found) == 7 and set(found[0].labels) <= set(NAMES.names)
    assert {entry["category_id"] for entry in found[0].to_coco(1)} <= {4, 5, 6}
    for one in found:
        assert (one.boxes[:, 2:] <= [one.width, one.height]).all() and (one.boxes >= 0).all()
    renamed = Detector(tmp_path / "model.onnx", device="cpu", class_names=["a", "b", "c"])
    assert set(next(renamed(pictures[0], 0.1)).labels) <= {"a", "b", "c"}


@pytest.mark.parametrize(
    "kind", ["dino", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("h_detr", "dab_detr"))]
)
def test_a_file_in_float64_agrees_to_the_last_digits(networks, pictures, tmp_path, kind):
    """Without rounding, what is left of a difference is a mistake in the graph: there is none."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network, cfg = networks[kind]
    exact = network.in_float64()
    write_onnx(exact.model, tmp_path / "model.onnx", metadata_of(NAMES, input_size(cfg), FREE, "RGB"), FREE, (64, 96))
    exported = OnnxNetwork(tmp_path / "model.onnx", "cpu")
    results = compare(exact, exported, [(str(n), pixels) for n, pixels in enumerate(pictures[:3])])
    assert sum(result.counts[0] for result in results) > 20
    assert all(result.agrees for result in results)
    # What is compared are float32s of pixels and scores.
    assert max(result.box for result in results) < 1e-4 and max(result.score for result in results) < 2e-7


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.integers(1, 2),
    has_bias=st.booleans(),
)
def test_convolutions_as_products(kernel, stride, padding, dilation, has_bias):
    """ONNX Runtime has none in float64; the engine's kernels, strides and dilations, and others."""
    images, weight = torch.randn(2, 3, 11, 9, dtype=torch.double), torch.randn(5, 3, *kernel, dtype=torch.double)
    bias = torch.randn(5, dtype=torch.double) if has_bias else None
    expected = torch.conv2d(images, weight, bias, stride, padding, dilation)
    assert torch.allclose(convolve(images, weight, bias, stride, padding, dilation), expected, atol=1e-12)


def test_convolutions_that_are_no_single_product_are_refused():
    with pytest.raises(ValueError, match="groups"):
        convolve(torch.zeros(1, 2, 3, 3), torch.zeros(2, 1, 1, 1), groups=2)


@pytest.mark.slow
def test_the_full_model_agrees_in_float64(pictures, tmp_path):
    """R50 with random weights, each query with a content of its own, where float32 has ranks of proposals wrong."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network, metadata = full_model(tmp_path)
    exact = network.in_float64()
    write_onnx(exact.model, tmp_path / "model.onnx", metadata, FREE, (224, 299))
    exported = OnnxNetwork(tmp_path / "model.onnx", "cpu")
    results = compare(exact, exported, [(str(n), pixels) for n, pixels in enumerate(pictures[:2])])
    assert all(result.agrees for result in results), agreement_table(results, ("PyTorch", "ONNX Runtime"))
    assert [result.counts for result in results] == [(300, 300)] * 2


def full_model(folder, change=lambda state: None):
    """`align_detr_r50_4scale_12ep` with random weights, on images of 224 pixels, and what its file says of it."""
    cfg = LazyConfig.load(str(Path(align_detr.__file__).parent / "configs/align_detr_r50_4scale_12ep.py"))
    cfg.train.device = "cpu"
    cfg.dataloader.test.mapper.augmentation[0].short_edge_length = 224
    state = random_weights(cfg)
    change(state)
    torch.save({"model": state}, folder / "weights.pth")
    network = PyTorchNetwork(cfg, str(folder / "weights.pth"), None, "cpu", "float32")
    return network, metadata_of(network.classes, input_size(cfg), FREE, "RGB")


@pytest.mark.slow
def test_the_full_model_agrees(pictures, tmp_path):
    """R50, where rounding cannot choose: of 900 proposals some score closer to each other than float32 is exact, so
    which is the 380th is chance. Here all queries have one content, and what place a proposal has does not matter."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def one_content(state):
        content = state["transformer.tgt_embed.weight"]
        content[:] = content[0].clone()

    network, metadata = full_model(tmp_path, one_content)
    write_onnx(network.model, tmp_path / "model.onnx", metadata, FREE, (224, 299))
    exported = OnnxNetwork(tmp_path / "model.onnx", "cpu")
    results = compare(network, exported, [(str(n), pixels) for n, pixels in enumerate(pictures[:2])])
    assert all(result.agrees for result in results), agreement_table(results, ("PyTorch", "ONNX Runtime"))
    assert [result.counts for result in results] == [(300, 300)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("shape", [FIXED, FREE], ids=["fixed", "free"])
def test_torch_export_agrees(networks, pictures, tmp_path, shape):
    network = write(networks, "dino", shape, tmp_path / "model.pt2", write_program)
    exported = ProgramNetwork(tmp_path / "model.pt2")
    assert exported.shape == shape and exported.classes == NAMES
    results = compare(network, exported, [(str(n), pixels) for n, pixels in enumerate(pictures[:4])])
    assert all(result.agrees for result in results) and results[0].counts[0] > 3


@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_the_same_network(networks, pictures, kind):
    """What float32 is measured with: the same detections, nothing of it in float32, and the original left alone."""
    network, _ = networks[kind]
    exact = network.in_float64()
    seen = []
    for part in exact.model.modules():
        part.register_forward_hook(lambda module, arguments, output: seen.append(output))
    results = compare(network, exact, [(str(n), pixels) for n, pixels in enumerate(pictures[:2])])
    assert all(result.agrees for result in results) and results[0].counts[0] > 3
    tensors = [output for output in seen if isinstance(output, torch.Tensor) and output.is_floating_point()]
    assert len(tensors) > 50 and {tensor.dtype for tensor in tensors} == {torch.float64}
    assert {parameter.dtype for parameter in network.model.parameters()} == {torch.float32}


def test_disagreement_is_seen():
    """Another class, a box too far, a score too far, one too many; but not order, nor what sits on the threshold."""

    class Fixed:
        def __init__(self, *rows):
            table = np.array(rows, np.float32).reshape(-1, 6)
            self.found = Predictions(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))

        def prepare(self, pixels):
            return pixels

        def detect(self, images, sizes):
            return [self.found]

    def outcome(*rows):
        reference = Fixed((0, 0, 10, 10, 0.9, 1), (5, 5, 20, 20, 0.5, 0))
        (result,) = compare(reference, Fixed(*rows), [("x", np.zeros((30, 30, 3), np.uint8))])
        return result

    first, second = (0, 0, 10, 10, 0.9, 1), (5, 5, 20, 20, 0.5, 0)
    assert outcome(first, second).agrees and outcome(second, first).agrees
    assert outcome((0, 0, 10.4, 10, 0.9, 1), second).agrees
    assert outcome(first, second, (1, 1, 3, 3, 0.0505, 1)).agrees
    assert not outcome((0, 0, 10, 10, 0.9, 2), second).agrees
    assert outcome((0, 0, 10.6, 10, 0.9, 1), second).box == pytest.approx(0.6, abs=1e-5)
    assert not outcome((0, 0, 10.6, 10, 0.9, 1), second).agrees
    assert not outcome((0, 0, 10, 10, 0.902, 1), second).agrees
    assert not outcome(first).agrees
    assert not outcome(first, second, (1, 1, 3, 3, 0.06, 1)).agrees
    assert outcome().unmatched == 2
    # A detector gives so many and no more: which of two equal ones is the last is chance.
    assert outcome(first, (50, 50, 60, 60, 0.5, 2)).agrees


def test_onnx_files_of_others(networks, pictures, tmp_path, monkeypatch):
    """One line for what cannot be run or is not known."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write(networks, "dab_detr", Shape(1, (64, 64)), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")

    def refused(said, path=tmp_path / "other.onnx", kind=ValueError, **arguments):
        with pytest.raises(kind, match=said) as error:
            Detector(path, **arguments)
        assert "\n" not in str(error.value) and path.name in str(error.value) or "device" in said

    nothing = '{"height": 0, "width": 5, "channel_order": "RGB"}'
    for value, said in [("{", "damaged"), ("{}", "damaged"), (nothing, "no size")]:
        onnx.helper.set_model_props(graph, {**{p.key: p.value for p in graph.metadata_props}, INPUT: value})
        onnx.save(graph, tmp_path / "other.onnx")
        refused(said)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "other.onnx")
    refused("was not written by `align-detr export`")
    (tmp_path / "other.onnx").write_bytes(b"hello")
    refused("is incomplete, or no ONNX file that can be run: copy or export it again")
    refused("no such file", tmp_path / "nowhere.onnx", FileNotFoundError)
    refused("device=mps is not there", tmp_path / "model.onnx", device="mps")
    refused("has config and weights in it", tmp_path / "model.onnx", weights="x.pth")
    refused("dtype=float16: ONNX Runtime computes in the types", tmp_path / "model.onnx", dtype="float16")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused("needs a package, onnxruntime: pip install", tmp_path / "model.onnx", ImportError)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="needs a package, onnx: pip install"):
        write(networks, "dab_detr", Shape(1, (64, 64)), tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


def test_the_model_is_left_as_it_was(networks, pictures, tmp_path):
    """It goes on to detect, and to train, in PyTorch."""
    pytest.importorskip("onnx")
    network, cfg = networks["dino"]
    image, size = network.prepare(pictures[0]), pictures[0].shape[:2]
    (before,) = network.detect([image], [size])
    write(networks, "dino", Shape(1, (64, 96)), tmp_path / "model.onnx")
    (after,) = network.detect([image], [size])
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert type(network.model) is type(instantiate(cfg.model)) and "detect" not in vars(network.model)
