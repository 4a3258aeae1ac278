"""Backbones of timm: detrex's numbers, all kinds of models and image sizes, weights from files, and errors."""

import builtins
import sys

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detrex.modeling.backbone import TimmBackbone
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("timm")

# One of each kind: its model, three feature maps, and their strides.
KINDS = {
    "resnet10t": ((1, 2, 3), (4, 8, 16)),
    "convnext_atto": ((1, 2, 3), (8, 16, 32)),
    "tf_efficientnet_lite0": ((2, 3, 4), (8, 16, 32)),
    "mobilenetv3_small_050": ((2, 3, 4), (8, 16, 32)),
    "swin_tiny_patch4_window7_224": ((1, 2, 3), (8, 16, 32)),
    "vit_tiny_patch16_224": ((3, 7, 11), (16, 16, 16)),
    "vit_small_patch14_dinov2": ((3, 7, 11), (14, 14, 14)),
    "vit_small_patch16_dinov3": ((3, 7, 11), (16, 16, 16)),
}
LIGHT = [name for name in KINDS if not name.startswith(("swin", "vit_small"))]


def randomised(model):
    """`model` in evaluation mode with random batch statistics, so that no normalisation is the identity."""
    g = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=g) * 0.1)
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=g) + 0.5)
    return model.eval()


@pytest.mark.parametrize("image", [0, 1])
def test_features_and_gradients_match_recording(golden, timm, monkeypatch, image):
    """State-dict keys, features and gradients are those of detrex's TimmBackbone, at an odd size too."""
    case = golden("timm_backbone")
    narrow = {key: value for key, value in case.config["narrowed"].items() if key != "how"}
    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: create_model(*args, **kwargs, **narrow))
    backbone = TimmBackbone(**case.config["model"]).eval()
    backbone.load_state_dict(case.state, strict=True)

    features = backbone(case.input[image]["image"].float())
    expected = case.output[image]
    assert list(features) == list(expected["features"])
    loss = 0
    for name, value in features.items():
        torch.testing.assert_close(value, expected["features"][name], rtol=1e-4, atol=1e-4)
        loss = loss + (value * torch.linspace(-1, 1, value.numel()).view_as(value)).mean()
    torch.testing.assert_close(loss, expected["loss"], rtol=5e-4, atol=0)
    loss.backward()
    norms = {name: p.grad.norm() for name, p in backbone.named_parameters() if p.grad is not None}
    flat = {name.replace("/", "."): norm for name, norm in _flat(expected["grad_norms"])}
    assert norms.keys() == flat.keys()
    for name, norm in norms.items():
        torch.testing.assert_close(norm, flat[name], rtol=5e-3, atol=1e-6)


def _flat(tree, prefix=""):
    if isinstance(tree, torch.Tensor):
        return [(prefix, tree)]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [leaf for key, value in items for leaf in _flat(value, f"{prefix}/{key}".lstrip("/"))]


@pytest.mark.parametrize("name", KINDS)
def test_any_model_with_feature_maps(name):
    """All kinds of models return (B, C, H, W) with the channels and strides of `output_shape`, and pass gradients."""
    indices, strides = KINDS[name]
    backbone = TimmBackbone(name, out_indices=indices).eval()
    features = backbone(torch.randn(2, 3, 75, 110))
    assert list(features) == [f"p{i}" for i in indices]
    for (key, feature), stride in zip(features.items(), strides, strict=True):
        shape = backbone.output_shape()[key]
        assert shape.stride == stride
        assert feature.shape[:2] == (2, shape.channels)
        for size, length in zip((75, 110), feature.shape[2:], strict=True):
            assert size // stride <= length <= -(-size // stride)
    sum(feature.sum() for feature in features.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


@settings(max_examples=15, deadline=None)
@given(height=st.integers(32, 130), width=st.integers(32, 130))
def test_feature_maps_of_any_image_size_follow_the_stride(timm_lite, height, width):
    """Detectors resize their padding masks to the feature maps, so a map must be ⌈size / stride⌉ long."""
    with torch.no_grad():
        features = timm_lite(torch.zeros(1, 3, height, width))
    for stride, feature in zip((8, 16, 32), features.values(), strict=True):
        assert feature.shape[2:] == (-(-height // stride), -(-width // stride))


@pytest.fixture(scope="module")
def timm_lite(timm):
    return TimmBackbone("tf_efficientnet_lite0", out_indices=(2, 3, 4)).eval()


@pytest.mark.engine("detrex's own gives a classifier's file to the feature extractor, which timm refuses")
@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("kind", ["classifier", "features", "detector", "safetensors"])
def test_weights_from_a_file(timm, tmp_path, name, kind):
    """`checkpoint_path` accepts weights of timm's classifiers and feature extractors, and of a detector's backbone."""
    indices, _ = KINDS[name]
    source = randomised(TimmBackbone(name, out_indices=indices))
    state = source.timm_model.state_dict()
    if kind in ("classifier", "safetensors"):
        classifier = timm.create_model(name)
        own = classifier.state_dict()
        plain = {n.removeprefix("model."): value for n, value in state.items()}
        plain = {(n if n in own else n.replace("_", ".", 1)): value for n, value in plain.items()}
        assert plain.keys() <= own.keys()
        state = {**own, **plain}
    if kind == "detector":
        state = {"model": {f"backbone.timm_model.{n}": value for n, value in state.items()}}
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file({n: value.contiguous() for n, value in state.items()}, path)
    elif kind == "detector":
        torch.save({"state_dict": state["model"]}, path)
    else:
        torch.save(state, path)

    loaded = TimmBackbone(name, checkpoint_path=str(path), out_indices=indices).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for key, value in source(image).items():
            torch.testing.assert_close(loaded(image)[key], value, rtol=0, atol=0)


@pytest.mark.engine("detrex's own ends the process")
def test_a_file_of_another_model_is_refused(timm, tmp_path):
    """Weights that fit only partly are an error."""
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    message = r"resnet18.pth does not fit the timm model, \d+ of \d+ tensors: layer1.2.conv1.weight missing"
    with pytest.raises(ValueError, match=message) as error:
        TimmBackbone("resnet34", checkpoint_path=str(tmp_path / "resnet18.pth"))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="conv1.0.weight missing"):
        TimmBackbone("resnet10t", checkpoint_path=str(tmp_path / "resnet18.pth"))


class _Runs:
    def __reduce__(self):
        return builtins.print, ("this ran",)


@pytest.mark.engine("detrex's own reads it as timm does")
def test_a_file_that_runs_code_is_refused(tmp_path, capsys):
    """A pickle can run code; loading weights must not run it."""
    torch.save({"conv1.weight": _Runs()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth is not a file of weights that can be read safely"):
        TimmBackbone("resnet18", checkpoint_path=str(tmp_path / "evil.pth"))
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.engine("detrex's own ends the process")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model_name="resnet18_typo"), "has no model 'resnet18_typo'; there are .*resnet"),
        (dict(model_name="resnet18", features_only=False), "features_only=True"),
        (dict(model_name="resnet18", out_indices=(2, 1)), "ascending"),
        (dict(model_name="resnet18", out_indices=()), "out_indices"),
        (dict(model_name="resnet18", out_indices=(1, 9)), "cannot build resnet18 with feature maps"),
        (dict(model_name="vit_tiny_patch16_224", norm_layer=3), "cannot build vit_tiny"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(arguments, message):
    """Mistakes in a config give a ValueError of one line (timm raises AssertionError, IndexError and others)."""
    with pytest.raises(ValueError, match=message) as error:
        TimmBackbone(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.engine("detrex's own takes any value")
def test_a_path_is_no_value_of_pretrained():
    """A path as `pretrained` is an error: timm would take it as True and download other weights."""
    with pytest.raises(TypeError, match="checkpoint_path"):
        TimmBackbone("resnet18", pretrained="weights.pth")


@pytest.mark.engine("the message is the engine's")
def test_without_timm_the_error_names_the_extra(monkeypatch):
    """timm is optional: the error names the package to install."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm torchvision") as error:
        TimmBackbone("resnet18")
    assert "\n" not in str(error.value)


def test_grey_images():
    """`in_channels` is passed to timm."""
    backbone = TimmBackbone("resnet10t", in_channels=1, out_indices=(2,))
    assert backbone(torch.zeros(1, 1, 32, 32))["p2"].shape == (1, 128, 4, 4)


def test_chosen_norm():
    """`norm_layer` is passed to timm."""
    backbone = TimmBackbone("resnet10t", norm_layer=torch.nn.SyncBatchNorm, out_indices=(2,))
    assert isinstance(backbone.timm_model.bn1, torch.nn.SyncBatchNorm)


@pytest.mark.engine("timm since 1.0.20 gives norm layers a device, which detectron2's does not take")
@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_frozen_batch_norm_keeps_weights_and_activations(tmp_path, name):
    """detrex documents `norm_layer=FrozenBatchNorm2d`; EfficientNets have their activation inside the norm."""
    plain = randomised(TimmBackbone(name)).double()
    torch.save(plain.timm_model.state_dict(), tmp_path / "weights.pth")
    frozen = TimmBackbone(name, checkpoint_path=str(tmp_path / "weights.pth"), norm_layer=FrozenBatchNorm2d).double()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in frozen.modules())
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    features = frozen.train()(image)
    for key, value in plain(image).items():
        torch.testing.assert_close(features[key], value, rtol=1e-9, atol=1e-9)
