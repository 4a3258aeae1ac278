"""Exported weights: the same detections, the average if it is asked for, and a clear word where it cannot be."""

import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detrex.modeling.ema import EMAState

from detrkit.commands import export_weights as tool
from detrkit.config.load import get_config

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "projects" / "align_detr" / "configs" / "align_detr_tiny.py"


def build(seed):
    cfg = LazyConfig.load(str(CONFIG))
    cfg.train.device = "cpu"
    torch.manual_seed(seed)
    model = instantiate(cfg.model).eval()
    for parameter in model.parameters():  # no head is zero any more
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def detect(model):
    generator = torch.Generator().manual_seed(0)
    images = [{"image": 255 * torch.rand(3, 96, 128, generator=generator)} for _ in range(2)]
    with torch.no_grad():
        return [result["instances"] for result in model(images)]


def same(a, b):
    return all(
        torch.equal(x.pred_boxes.tensor, y.pred_boxes.tensor)
        and torch.equal(x.scores, y.scores)
        and torch.equal(x.pred_classes, y.pred_classes)
        for x, y in zip(a, b, strict=True)
    )


def export(checkpoint, output, *options):
    tool.main(["--checkpoint", str(checkpoint), "--output", str(output), *options])
    return output


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file as they are published: of a model in DistributedDataParallel, with the optimizer; and that model."""
    model = build(seed=1)
    path = tmp_path_factory.mktemp("released") / "model_final.pth"
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "iteration": 89999}, path)
    return path, model


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_released_file_detects_the_same_after_export(released, tmp_path, suffix, capsys):
    """In, evaluated, exported, in again: not a bit differs. All names are kept, the optimizer is not."""
    if suffix == ".safetensors":
        load_file = pytest.importorskip("safetensors.torch").load_file
    path, original = released
    first = build(seed=2)
    expected = detect(original)
    assert not same(detect(first), expected)
    DetectionCheckpointer(first).load(str(path))
    assert same(detect(first), expected)

    output = export(path, tmp_path / f"new/weights{suffix}")
    values = sum(tensor.numel() for tensor in {id(t): t for t in original.state_dict(keep_vars=True).values()}.values())
    assert f"{values:,}" in capsys.readouterr().out
    content = torch.load(output, weights_only=True) if suffix == ".pth" else {"model": load_file(output)}
    assert list(content) == ["model"] and content["model"].keys() == original.state_dict().keys()
    second = build(seed=3)
    second.load_state_dict(content["model"], strict=True)
    assert same(detect(second), expected)


def test_safetensors_load_as_they_are(released, tmp_path):
    """`train.init_checkpoint` takes the exported file."""
    pytest.importorskip("safetensors")
    path, original = released
    model = build(seed=2)
    if "embedded" not in str(sys.modules["detectron2"].__file__):
        pytest.skip("detectron2's own checkpointer does not read .safetensors")
    DetectionCheckpointer(model).load(str(export(path, tmp_path / "weights.safetensors")))
    assert same(detect(model), detect(original))


def test_the_average_is_exported_under_the_models_names(tmp_path):
    """An average has one name of each shared parameter, and buffers that a state dict has not."""
    model, average = build(seed=1), build(seed=2)
    DetectionCheckpointer(model, str(tmp_path), ema_state=EMAState.FromModel(average)).save("model")
    for ema, expected in (((), model), (("--ema",), average)):
        output = export(tmp_path / "model.pth", tmp_path / "weights.pth", *ema)
        loaded = build(seed=3)
        loaded.load_state_dict(torch.load(output, weights_only=True)["model"], strict=True)
        assert same(detect(loaded), detect(expected))


def test_half_precision_takes_half_the_space(released, tmp_path):
    """Shared tensors are written once, integers stay integers."""
    path, _ = released
    whole, half = export(path, tmp_path / "a.pth"), export(path, tmp_path / "b.pth", "--half")
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    for name, tensor in torch.load(half, weights_only=True)["model"].items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float16)


def test_a_backbone_starts_another_detector(released, tmp_path):
    """`--only backbone` holds that and nothing else, so a DAB-DETR gets that of a DINO, whole, and nothing besides."""
    path, original = released
    output = export(path, tmp_path / "backbone.pth", "--only", "backbone")
    written = torch.load(output, weights_only=True)["model"]
    assert written.keys() == {f"backbone.{name}" for name in original.backbone.state_dict()}
    other = instantiate(get_config("baselines/dab_detr_tiny.py").model)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    DetectionCheckpointer(other).load(str(output))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, written[name] if name.startswith("backbone.") else before[name])


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        export(*arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 1 and message.startswith("error: ") and message.count("\n") == 1
    return message


def test_a_config_checks_what_is_exported(released, tmp_path, capsys):
    """With the model's config it passes, with another number of classes the difference is named."""
    path, _ = released
    export(path, tmp_path / "a.pth", "--config-file", str(CONFIG))
    other = ["--config-file", str(CONFIG), "model.num_classes=7"]
    assert "class_embed" in refusal(capsys, path, tmp_path / "b.pth", *other)
    assert "neck, transformer" in refusal(capsys, path, tmp_path / "b.pth", "--only", "back")
    assert not (tmp_path / "b.pth").exists()


def test_errors(released, tmp_path, capsys):
    """One line that says what to do; and nothing is written."""
    path, _ = released
    output = tmp_path / "out.pth"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    def saved(content):
        torch.save(content, tmp_path / "odd.pth")
        return tmp_path / "odd.pth"

    assert "no such checkpoint" in refusal(capsys, tmp_path / "nowhere.pth", output)
    assert ".pth or .safetensors" in refusal(capsys, path, tmp_path / "out.onnx")
    assert "leave out --ema" in refusal(capsys, path, output, "--ema")
    assert "add --config-file" in refusal(capsys, path, output, "model.num_classes=7")
    assert "leave out --half" in refusal(capsys, saved({"w": torch.full((2,), 1e6)}), output, "--half")
    assert "lr in it is not a tensor" in refusal(capsys, saved({"lr": 1}), output)
    assert "argparse.Namespace: refused" in refusal(capsys, saved({"model": {}, "args": Namespace()}), output)
    assert "system: refused" in refusal(capsys, saved({"model": Evil()}), output)
    (tmp_path / "odd.safetensors").write_bytes(b"nothing")
    assert "odd.safetensors" in refusal(capsys, tmp_path / "odd.safetensors", output)
    assert not (tmp_path / "ran").exists() and not output.exists()
    odd = saved({"w": torch.ones(2)})
    assert "another name" in refusal(capsys, odd, odd)
