"""Other runtimes and smaller types of numbers for exported graphs: OpenVINO, float16 and int8."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align_detr import Detector
from detrkit.config.load import get_config, load_config
from detrkit.datasets.classes import Classes
from detrkit.inference.agreement import agreement_table, compare
from detrkit.inference.export import export
from detrkit.inference.graph_evaluation import evaluate_network
from detrkit.inference.network import Predictions
from detrkit.inference.pytorch import PyTorchNetwork
from detrkit.inference.runtimes import RUNTIMES, open_graph

from .conftest import KINDS, random_weights, small_config

pytestmark = pytest.mark.engine("detrex's own modules keep numbers of one image's size: the engine's are exported")
CO_DETR = Path(__file__).resolve().parents[3] / "projects/co_detr/configs"
FAMILIES = {
    **{kind: None for kind in KINDS},
    "conditional_detr": "baselines/conditional_detr_tiny.py",
    "co_dino": str(CO_DETR / "co_dino_tiny.py"),
    "co_deformable_detr": str(CO_DETR / "co_deformable_detr_tiny.py"),
}


def config_of(family):
    """A small config of a family of detectors, on images of 64 pixels."""
    if family in KINDS:
        return small_config(family)
    from detectron2.config import LazyConfig

    file = FAMILIES[family]
    cfg = LazyConfig.load(file) if file.startswith("/") else get_config(file)
    cfg.train.device = "cpu"
    cfg.dataloader.test.mapper.augmentation[0].short_edge_length = 64
    cfg.model.select_box_nums_for_evaluation = 20
    cfg.model["num_queries_one2one" if family == "co_deformable_detr" else "num_queries"] = 20
    return cfg


def network_of(family, folder):
    cfg = config_of(family)
    torch.save({"model": random_weights(cfg)}, folder / "model.pth")
    return cfg, PyTorchNetwork(cfg, str(folder / "model.pth"), None, "cpu", "float32")


def agreement(reference, other, pictures):
    return compare(reference, other, [(str(n), pixels) for n, pixels in enumerate(pictures)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small DINO: its PyTorch network, and its file for images of any size."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    cfg, network = network_of("dino", folder)
    export(None, folder / "model.onnx", config=cfg, checkpoint=str(folder / "model.pth"), dynamic=True)
    return cfg, network, folder


@pytest.mark.parametrize(
    "family", ["dino", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "dino")]
)
def test_openvino_agrees(family, pictures, tmp_path):
    """Protects who deploys with OpenVINO: PyTorch's detections for every family of detectors, images of any size, alone
    and in batches, from ONNX's file and from OpenVINO's own."""
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    cfg, network = network_of(family, tmp_path)
    for name in ("model.onnx", "model.xml"):
        export(None, tmp_path / name, config=cfg, checkpoint=str(tmp_path / "model.pth"), dynamic=True)
        other = open_graph(tmp_path / name, "openvino", threads=1)
        results = agreement(network, other, pictures[:2])
        assert all(result.agrees for result in results), agreement_table(results, ("PyTorch", "OpenVINO"))
        assert sum(result.counts[0] for result in results) > 10
        images, sizes = [other.prepare(pixels) for pixels in pictures[::2][:2]], [pictures[0].shape[:2]] * 2
        for found, image, size in zip(other.detect(images, sizes), images, sizes, strict=True):
            (alone,) = network.detect([image], [size])
            assert np.allclose(np.sort(found.scores), np.sort(alone.scores), atol=1e-4)


def test_detector_chooses_the_runtime(exported, pictures, tmp_path):
    """One file, two runtimes, the same detections and class names; the end of a name chooses the default."""
    pytest.importorskip("openvino")
    _, network, folder = exported
    detectors = [Detector(folder / "model.onnx", device="cpu", runtime=runtime) for runtime in (None, *RUNTIMES)]
    assert [type(d.network).__name__ for d in detectors] == ["OnnxNetwork", "OnnxNetwork", "OpenVinoNetwork"]
    first, *others = [next(detector(pictures[0], 0.1)) for detector in detectors]
    assert len(first) > 3
    for other in others:
        assert other.labels == first.labels and np.allclose(other.boxes, first.boxes, atol=0.01)


SIGNALLED = """
import gc, signal, sys
from detrkit.inference.runtimes import open_graph

networks = [open_graph(sys.argv[1], "openvino") for _ in range(2)]
while networks:
    del networks[0]
    gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


def test_signals_are_handled_after_openvino(exported, run_python):
    """Two of its Cores in one process left the handlers of signals a stack in freed memory: Ctrl-C crashed."""
    pytest.importorskip("openvino")
    *_, folder = exported
    done = run_python("-c", SIGNALLED, str(folder / "model.onnx"))
    assert done.stdout == "handled\n" and done.returncode == 0, done.stderr


def test_openvino_computes_in_float32_unless_asked(exported):
    """On a CPU with units for bfloat16 OpenVINO would choose it by itself."""
    openvino = pytest.importorskip("openvino")
    _, _, folder = exported
    network = open_graph(folder / "model.onnx", "openvino")
    compiled = network._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        network = open_graph(folder / "model.onnx", "openvino", dtype="bfloat16")
        compiled = network._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16


def test_mistakes_of_runtimes(exported, tmp_path, monkeypatch):
    """One line names the runtime, type, file or package."""
    pytest.importorskip("openvino")
    _, _, folder = exported
    file = folder / "model.onnx"

    def refused(said, path=file, kind=ValueError, **options):
        with pytest.raises(kind, match=said) as error:
            Detector(path, **options)
        assert "\n" not in str(error.value)

    refused("runtime='tensorrt' is none of onnxruntime, openvino", runtime="tensorrt")
    refused("dtype=bfloat16: ONNX Runtime computes in the types", dtype="bfloat16")
    refused("dtype=int4 is none of", runtime="openvino", dtype="int4")
    refused("device=cuda is not there for OpenVINO, which has cpu", runtime="openvino", device="cuda")
    refused("runtime='openvino' is for graphs", folder, runtime="openvino")
    (tmp_path / "other.xml").write_text("<net/>")
    refused("other.xml or other.bin beside it is incomplete, or no file that OpenVINO", tmp_path / "other.xml")
    refused("onnxruntime takes a file that ends in .onnx", tmp_path / "other.xml", runtime="onnxruntime")
    refused("no such file", tmp_path / "nowhere.xml", FileNotFoundError)
    monkeypatch.setitem(sys.modules, "openvino", None)
    refused(r'needs a package, openvino: pip install "\.\[openvino\]"', kind=ImportError, runtime="openvino")
    with pytest.raises(ImportError, match="needs a package, openvino"):
        export(None, tmp_path / "x.xml", config=exported[0], checkpoint=str(folder / "model.pth"))
    assert not (tmp_path / "x.xml").exists()


def write_images(folder, pictures):
    folder.mkdir()
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def one_content(state):
    """Queries of one content, so that rounding cannot exchange it between proposals of nearly the same score."""
    content = state["transformer.tgt_embed.weight"]
    content[:] = content[0].clone()
    return state


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A small DINO whose detections do not depend on the order of its proposals: network, config and folder."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("plain")
    cfg = small_config("dino")
    torch.save({"model": one_content(random_weights(cfg))}, folder / "model.pth")
    return PyTorchNetwork(cfg, str(folder / "model.pth"), None, "cpu", "float32"), cfg, folder


def test_float16(plain, pictures):
    """Protects boxes and the choice of queries from float16: detections stay within two pixels, the file is smaller,
    and values between nodes in float32 are not rounded on their way."""
    onnx = pytest.importorskip("onnx")
    network, cfg, folder = plain
    sizes = {}
    for precision in ("float32", "float16"):
        path = folder / f"{precision}.onnx"
        export(None, path, config=cfg, checkpoint=str(folder / "model.pth"), dynamic=True, precision=precision)
        sizes[precision] = path.stat().st_size
    assert sizes["float16"] < 0.7 * sizes["float32"]
    other = open_graph(folder / "float16.onnx", threads=1)
    for pixels in pictures[:2]:
        image, size = other.prepare(pixels), pixels.shape[:2]
        (expected,), (found,) = network.detect([image], [size]), other.detect([image], [size])
        assert np.abs(np.sort(found.scores) - np.sort(expected.scores)).max() < 0.02
        best = expected.scores > 0.3
        distances = np.abs(expected.boxes[best][:, None] - found.boxes).max(-1).min(1)
        assert best.sum() > 3 and distances.max() < 2
    nodes = onnx.load(folder / "float16.onnx").graph.node
    halved = {n.output[0] for n in nodes if n.op_type == "Cast" and n.attribute[0].i == onnx.TensorProto.FLOAT16}
    widened = [n for n in nodes if n.op_type == "Cast" and n.attribute[0].i == onnx.TensorProto.FLOAT]
    assert halved and widened and not [n.name for n in widened if n.input[0] in halved]


def test_int8(plain, pictures, tmp_path):
    """Backbone and feed-forward blocks compute in int8 in a smaller file, with classes and input size kept."""
    onnx = pytest.importorskip("onnx")
    network, cfg, folder = plain
    images = write_images(tmp_path / "images", pictures)
    source = {"config": cfg, "checkpoint": str(folder / "model.pth"), "dynamic": True}
    export(None, tmp_path / "int8.onnx", precision="int8", calibration=images, **source)
    quantised = {n.name for n in onnx.load(tmp_path / "int8.onnx").graph.node if n.op_type == "QuantizeLinear"}
    assert any("backbone" in name for name in quantised) and any("ffns" in name for name in quantised)
    other = open_graph(tmp_path / "int8.onnx", threads=1)
    assert other.classes == network.classes
    (expected,), (found,) = (
        n.detect([other.prepare(pictures[0])], [pictures[0].shape[:2]]) for n in (network, other)
    )
    difference = np.abs(np.sort(found.scores) - np.sort(expected.scores))
    assert 0 < difference.mean() < 0.05


def test_mistakes_of_precisions(plain, tmp_path):
    """One line each, before anything is written."""
    _, cfg, folder = plain
    (tmp_path / "none").mkdir()

    def refused(said, name, **options):
        with pytest.raises(ValueError, match=said) as error:
            export(None, tmp_path / name, config=cfg, checkpoint=str(folder / "model.pth"), **options)
        assert "\n" not in str(error.value) and not (tmp_path / name).exists()

    refused("int8 needs images to calibrate with", "x.onnx", precision="int8")
    refused("none: no images there", "x.onnx", precision="int8", calibration=tmp_path / "none")
    refused("neither a folder of images nor the name of a dataset", "x.onnx", precision="int8", calibration="nowhere")
    refused("calibration=.* is for precision=int8", "x.onnx", calibration=tmp_path)
    refused("precision=int8 is for .onnx, not for", "x.xml", precision="int8", calibration=tmp_path)
    refused("precision=float16 is for .onnx and .xml, not for", "x.safetensors", precision="float16")
    refused("precision=int4 is none of float32", "x.onnx", precision="int4")


def test_calibration_images_are_spread_over_a_folder(tmp_path, pictures, monkeypatch):
    from detrkit.inference import export as library

    monkeypatch.setattr(library, "MOST_CALIBRATION_IMAGES", 3)
    images = write_images(tmp_path / "images", pictures)
    assert [file.stem for file in library.calibration_files(images)] == ["0", "2", "4"]


class Oracle:
    """A network that detects what is annotated, image by image."""

    soft_nms = 0.0

    def __init__(self, file):
        content = json.loads(file.read_text())
        self.classes = Classes.from_plain([[c["id"], c["name"]] for c in content["categories"]], str(file))
        by_image = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            by_image[entry["image_id"]].append(([x, y, x + width, y + height], entry["category_id"]))
        self._found = iter(by_image.values())

    def prepare(self, pixels):
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
        return pixels

    def detect(self, images, sizes):
        found = next(self._found)
        boxes = np.array([box for box, _ in found], np.float32).reshape(-1, 4)
        labels = np.array([self.classes.ids.index(number) for _, number in found], np.int64)
        return [Predictions(boxes, np.ones(len(found), np.float32), labels)]


def test_graphs_are_evaluated_on_the_images_of_the_config(tmp_path, monkeypatch):
    """Protects the figures: a network that detects what is annotated has an AP of 100; one with another class, none."""
    from detrkit.commands import make_data

    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "data"))
    make_data.main(["--synthetic", "--train", "1", "--val", "3", "--output", str(tmp_path / "data")])
    cfg = load_config("align_detr_tiny", ["train.device=cpu"])
    cfg.dataloader.evaluator.output_dir = str(tmp_path)
    network = Oracle(tmp_path / "data/annotations/instances_val2017.json")
    assert evaluate_network(cfg, network, "oracle")["bbox"]["AP"] == pytest.approx(100)
    network.classes = Classes(("apple", "pear", "plum"), (1, 2, 3))
    with pytest.raises(ValueError, match="those of oracle"):
        evaluate_network(cfg, network, "oracle")


@pytest.mark.slow
def test_the_benchmark_of_runtimes(tmp_path, capsys):
    """Every runtime and precision is timed, and the smaller types have smaller files."""
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    from detrkit.commands import benchmark

    options = ["--parts", "runtimes", "--image-sizes", "96x96", "--repeats", "1", "--json", str(tmp_path / "all.json")]
    benchmark.main(["align_detr_tiny", *options, "train.device=cpu"])
    records = {entry["runtime"]: entry for entry in json.loads((tmp_path / "all.json").read_text())["records"]}
    assert {"PyTorch float32", "ONNX Runtime int8", "OpenVINO bfloat16"} <= records.keys()
    assert all(entry["processor_s"] > 0 and entry["AP"] is None for entry in records.values())
    sizes = {name: entry["bytes"] for name, entry in records.items()}
    assert max(sizes["ONNX Runtime float16"], sizes["ONNX Runtime int8"]) < sizes["ONNX Runtime float32"]
    assert "OpenVINO float32" in capsys.readouterr().out
