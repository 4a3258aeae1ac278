"""ResNet under detectron2's names."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import BasicStem, BottleneckBlock, ResNet
from detrex.modeling.backbone.resnet import make_stage
from torch import nn


def small_resnet(config: dict, **kwargs) -> ResNet:
    """The four-stage network of the recorded cases."""
    stages, width = [], config["stem_out"]
    dilations = (1, 1, 1, config["res5_dilation"])
    for i, (out_channels, dilation) in enumerate(zip(config["stage_out"], dilations, strict=True)):
        stride = 1 if i == 0 or dilation > 1 else 2
        blocks = config["blocks_per_stage"]
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                blocks,
                stride_per_block=[stride] + [1] * (blocks - 1),
                in_channels=width,
                out_channels=out_channels,
                bottleneck_channels=out_channels // 4,
                norm=config["norm"],
                stride_in_1x1=config["stride_in_1x1"],
                dilation=dilation,
            )
        )
        width = out_channels
    stem = BasicStem(out_channels=config["stem_out"], norm=config["norm"])
    return ResNet(stem, stages, freeze_at=config["freeze_at"], **kwargs)


@pytest.mark.parametrize("name", ["resnet", "resnet_dc5"])
@pytest.mark.parametrize("with_grad", [False, True])
def test_features_match_recording(golden, name, with_grad):
    """State-dict keys and features are detectron2's, on both paths through the frozen norms."""
    case = golden(name)
    model = small_resnet(case.config, out_features=list(case.output))
    model.load_state_dict(case.state, strict=True)
    image = next(iter(case.input.values())).requires_grad_(with_grad)
    for feature, value in model(image).items():
        torch.testing.assert_close(value, case.output[feature], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)]
)
def test_depths_have_their_published_sizes(depth, parameters):
    """The counts are torchvision's without its classifier; BatchNorm has parameters where FrozenBN has buffers."""
    channels = 64 if depth < 50 else 256
    with torch.device("meta"):
        model = ResNet(BasicStem(norm="BN"), make_stage(depth, norm="BN", out_channels=channels))
        default = ResNet(BasicStem(norm="BN"), ResNet.make_default_stages(depth, norm="BN"))
    assert sum(p.numel() for p in model.parameters()) == parameters
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in default.state_dict().items()}


def test_output_shape_agrees_with_outputs():
    """`output_shape` equals the real shapes; necks are built from it."""
    model = ResNet(BasicStem(), ResNet.make_default_stages(18), out_features=["stem", "res3", "res5"])
    features = model(torch.zeros(1, 3, 64, 96))
    assert list(features) == ["stem", "res3", "res5"]
    for name, shape in model.output_shape().items():
        assert features[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert model.output_shape()["res5"] == ShapeSpec(channels=512, stride=32)


def test_stages_beyond_the_last_output_are_left_out():
    """Parameters that get no gradient would make DDP fail."""
    model = ResNet(BasicStem(), ResNet.make_default_stages(18), out_features=["res3"])
    assert not any(name.startswith(("res4", "res5")) for name in model.state_dict())


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", "SyncBN"])
@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_freeze_at(norm, freeze_at):
    """Frozen parts have no trainable parameter and no batch statistics; the rest keeps both."""
    model = ResNet(BasicStem(norm=norm), ResNet.make_default_stages(18, norm=norm), freeze_at=freeze_at)
    for i, part in enumerate([model.stem, *model.stages], start=1):
        frozen = i <= freeze_at
        assert all(p.requires_grad != frozen for p in part.parameters())
        batch_norms = [m for m in part.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
        assert bool(batch_norms) == (norm in ("BN", "SyncBN") and not frozen)


def test_stride_in_1x1_moves_the_stride():
    """The MSRA weights stride in the first 1x1 convolution, torchvision's in the 3x3."""
    for stride_in_1x1, expected in ((True, (2, 1)), (False, (1, 2))):
        block = make_stage(50, stride_in_1x1=stride_in_1x1)[1][0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == expected


def test_classifier():
    """With `num_classes` and no other output, the network classifies."""
    model = ResNet(BasicStem(), ResNet.make_default_stages(18), num_classes=7)
    assert model(torch.zeros(2, 3, 32, 32))["linear"].shape == (2, 7)


def test_frozen_stem_still_passes_gradients_to_the_image():
    """Freezing stops updates of the weights, not back-propagation."""
    model = ResNet(BasicStem(norm="BN"), ResNet.make_default_stages(18, norm="BN"), freeze_at=5)
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    model(image)["res5"].sum().backward()
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_stage(50, deform_on_per_stage=[False, True, True, True]), "deformable"),
        (lambda: make_stage(51), "51"),
        (lambda: make_stage(18), "out_channels=64"),
        (lambda: make_stage(34, out_channels=64, res5_dilation=2), "res5_dilation"),
        (lambda: ResNet.make_default_stages(7), "7"),
        (lambda: ResNet(BasicStem(), ResNet.make_default_stages(18), out_features=["res6"]), "res6"),
        (
            lambda: ResNet.make_stage(BottleneckBlock, 2, in_channels=8, out_channels=8, stride_per_block=[1]),
            "stride_per_b",
        ),
    ],
)
def test_impossible_networks_are_refused_in_one_line(build, message):
    """The error names the wrong option; deformable stages are an error."""
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_initial_weights_keep_the_scale_of_gradients():
    """Training from scratch relies on He's initialisation: variance 2 / fan_out, so 2 / (64 · 9) here."""
    conv = make_stage(50)[0][1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
