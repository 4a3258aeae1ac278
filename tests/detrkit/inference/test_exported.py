"""Exported files: the same detections everywhere that they are taken, and nothing run of what a stranger puts there."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from safetensors.torch import load_file, save_file

from align_detr import Detector
from detrkit.config.exported import CLASSES, CONFIG, INPUT, read_exported, write_exported
from detrkit.config.load import load_config_file
from detrkit.datasets.classes import Classes
from detrkit.inference.export import export as export_file
from detrkit.runtime.soft_nms import soft_nms
from detrkit.training.checkpoints import SafeCheckpointer

from .conftest import KINDS, random_weights, small_config

NAMES = Classes(("<b>cell</b>", "Blutkörperchen", "細胞"), (3, 1, 7))


def export(path, kind="dino"):
    cfg = small_config(kind)
    state = random_weights(cfg)
    write_exported(path, state, cfg, NAMES)
    return cfg, state


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_file_is_the_detector(tmp_path, pictures, kind):
    """Weights, config, names and input size: the same detections as from config and checkpoint, with nothing beside
    the file."""
    cfg, state = export(tmp_path / "model.safetensors", kind)
    torch.save({"model": state}, tmp_path / "model.pth")
    detectors = [
        Detector(tmp_path / "model.safetensors", device="cpu"),
        Detector(config=cfg, weights=tmp_path / "model.pth", device="cpu", class_names=NAMES.names),
    ]
    a, b = ([*detector(pictures[:2], 0.05)] for detector in detectors)
    for one, other in zip(a, b, strict=True):
        assert len(one) > 3 and one.labels == other.labels
        assert np.array_equal(one.boxes, other.boxes) and np.array_equal(one.scores, other.scores)
        assert {entry["category_id"] for entry in one.to_coco(1)} <= set(NAMES.ids)


def test_what_is_written(tmp_path):
    """Weights under their names, for any reader of safetensors; metadata with input size, and without what the training
    had of folders and devices."""
    cfg, state = export(tmp_path / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
    metadata = raw_metadata(tmp_path / "model.safetensors")
    assert json.loads(metadata[INPUT]) == {"short_edge": 64, "max_size": 256}
    assert json.loads(metadata[CLASSES]) == [[3, "<b>cell</b>"], [1, "Blutkörperchen"], [7, "細胞"]]
    assert "output" not in metadata[CONFIG] and "cuda" not in metadata[CONFIG]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def raw_metadata(path):
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]


def test_a_config_for_tools_and_a_start_for_training(tmp_path):
    """Tools read the file as a config; checkpointers, which `train.init_checkpoint` goes to, as weights."""
    cfg, state = export(tmp_path / "model.safetensors")
    read = load_config_file(str(tmp_path / "model.safetensors"))
    assert read.model.num_queries == cfg.model.num_queries
    read.model.device = "cpu"  # as tools set it: the file says "auto"
    model = instantiate(read.model)
    SafeCheckpointer(model).load(str(tmp_path / "model.safetensors"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


HOSTILE = [
    ("model: {_target_: os.system, command: touch ran}", "it wants to call os.system: refused"),
    ("model: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
    ("model: {_target_: detectron2.config.LazyConfig.load, filename: evil.py}", "wants to call detectron2.config"),
    ("model: {_target_: torch.load, f: evil.pth}", "it wants to call torch.load: refused"),
    ("model: {_target_: fvcore.common.download.download, url: 'http://x', dir: .}", "refused"),
    ("model: {_target_: torch.nn.modules.module.torch.hub.load, repo_or_dir: a}", "refused"),
    ("model: {_target_: detectron2.modeling.backbone.resnet.np.load, file: evil.npy}", "refused|cannot be imported"),
    ("model: \"${oc.decode:'{_target_: os.system, command: touch ran}'}\"", "wants to resolve"),
    ("model: [", "not a config in YAML"),
    ("just text", "holds no mapping"),
]


@pytest.mark.parametrize("text, said", HOSTILE)
def test_a_hostile_file_runs_nothing(tmp_path, monkeypatch, text, said):
    """Whoever opens it, detector or tool, gets one line. The files that it names are there, and would leave a trace."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    metadata = {CONFIG: text, CLASSES: '[[1, "a"]]', INPUT: "{}"}
    save_file({"x": torch.zeros(1)}, "model.safetensors", metadata)
    for opens in (Detector, load_config_file):
        with pytest.raises(ValueError, match=said) as error:
            opens("model.safetensors")
        assert "model.safetensors" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("classes", ["{", "[]", "{}", "3", '[["a", 1]]', "[[1]]", "[" * 100_000, "null"])
def test_damaged_metadata(tmp_path, classes):
    cfg, state = export(tmp_path / "model.safetensors")
    metadata = raw_metadata(tmp_path / "model.safetensors") | {CLASSES: classes}
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(ValueError, match="bad.safetensors: its (classes are not|metadata are damaged)"):
        Detector(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_off(tmp_path, share):
    """Wherever it was cut off: `Detector` says that it is incomplete, and of weights beside a config too."""
    cfg, state = export(tmp_path / "model.safetensors")
    torch.save({"model": state}, tmp_path / "model.pth")
    for name in ("model.safetensors", "model.pth"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
    for source in ({"source": tmp_path / "model.safetensors"}, {"config": cfg, "weights": tmp_path / "model.pth"}):
        with pytest.raises(ValueError, match="is incomplete|is empty: it was cut off") as error:
            Detector(**source)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_text_in_place_of_weights(tmp_path, name):
    """Such as the page of an error that was downloaded."""
    (tmp_path / name).write_text("<!DOCTYPE html>\n<html>not found</html>")
    with pytest.raises(ValueError, match=f"{name} is no file of weights: it begins with b'<!DOCTYPE html>"):
        Detector(config=small_config(), weights=tmp_path / name)


def test_weights_alone(tmp_path, pictures):
    """They need a config, and are as good with one."""
    cfg = small_config()
    save_file({name: tensor.clone() for name, tensor in random_weights(cfg).items()}, tmp_path / "weights.safetensors")
    assert read_exported(tmp_path / "weights.safetensors") is None
    with pytest.raises(ValueError, match="weights alone: give their config too"):
        Detector(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="has weights and no config"):
        load_config_file(str(tmp_path / "weights.safetensors"))
    detector = Detector(config=cfg, weights=tmp_path / "weights.safetensors", device="cpu")
    assert len(next(detector(pictures[0], 0.1))) > 3
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="text.safetensors is no file of weights"):
        Detector(tmp_path / "text.safetensors")


def test_a_config_that_could_not_be_read_again(tmp_path):
    """Refused when it is written, not by who gets the file."""
    cfg = small_config()
    cfg.model.position_embedding._target_ = "builtins.dict"
    with pytest.raises(ValueError, match="it wants to call builtins.dict"):
        write_exported(tmp_path / "model.safetensors", random_weights(small_config()), cfg, NAMES)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_row_can_be_exported():
    """The config of each published row is one that an exported file may hold."""
    from detrkit.config.exported import MODEL_PACKAGES, _portable
    from detrkit.config.load import EMBEDDED_ROOT
    from detrkit.config.safe_yaml import parse_yaml

    root = EMBEDDED_ROOT.parent / "projects"
    rows = [path for project in ("align_detr", "co_detr", "sd_detr") for path in root.glob(f"{project}/configs/*.py")]
    assert len(rows) > 20
    for path in rows:
        parse_yaml(_portable(LazyConfig.load(str(path))), path.name, MODEL_PACKAGES)


NO_GRAPHS = pytest.mark.engine("detrex's own modules cannot be exported as graphs")


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".onnx", marks=NO_GRAPHS)])
def test_soft_nms_is_in_the_file(run_folder, tmp_path, pictures, suffix):
    """The option of the config goes into the file, and `Detector` applies it; an argument overrides it."""
    if suffix == ".onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"model{suffix}"
    cfg = small_config()
    cfg.train.soft_nms = 0.01
    export_file(None, path, config=cfg, checkpoint=str(run_folder / "model_final.pth"))
    (softened,), (plain,) = (
        list(Detector(path, device="cpu", soft_nms=value)(pictures[0], 0.0)) for value in (None, 0)
    )
    order, scores = soft_nms(plain.boxes, plain.scores, plain.classes, 0.01)
    assert np.allclose(softened.scores, scores) and np.array_equal(softened.boxes, plain.boxes[order])
    assert len(scores) < len(plain.scores) or not np.allclose(scores, plain.scores)
