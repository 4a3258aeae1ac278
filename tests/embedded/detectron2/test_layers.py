"""Norms, convolutions and blocks."""

import pytest
import torch
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, cat, get_norm
from torch import nn


def trained_batch_norm(channels: int = 6) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        value.uniform_(0.5, 1.5)
    return norm.eval()


@pytest.mark.parametrize("with_grad", [False, True])
def test_frozen_batch_norm_is_batch_norm_in_eval_mode(with_grad):
    """Values and input gradients equal those of the original norm, in training mode too."""
    norm = trained_batch_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm).train()
    x = torch.randn(2, 6, 5, 4, requires_grad=with_grad)
    torch.testing.assert_close(frozen(x), norm(x))
    if with_grad:
        weight = torch.randn(2, 6, 5, 4)
        ours, theirs = (torch.autograd.grad((f(x) * weight).sum(), x)[0] for f in (frozen, norm))
        torch.testing.assert_close(ours, theirs)


def test_frozen_batch_norm_holds_nothing_trainable():
    """The layer has no parameters, and exactly detectron2's four buffers."""
    frozen = FrozenBatchNorm2d(3)
    assert not list(frozen.parameters())
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_grad", [False, True])
def test_frozen_batch_norm_keeps_half_precision(dtype, with_grad):
    """Under autocast, features keep the low precision of the convolutions."""
    x = torch.randn(1, 3, 2, 2, dtype=dtype, requires_grad=with_grad)
    assert FrozenBatchNorm2d(3)(x).dtype == dtype


def test_conversions_reach_nested_modules_and_go_both_ways():
    """Freezing and unfreezing a backbone does not change its function."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(trained_batch_norm(), nn.ReLU()))
    x = torch.randn(2, 3, 4, 4)
    expected = model.eval()(x)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert isinstance(frozen[1][0], FrozenBatchNorm2d)
    torch.testing.assert_close(frozen(x), expected)


def test_freeze_freezes_in_place():
    """`freeze` works in place, so that the ResNet of the block is frozen too."""
    block = CNNBlockBase(3, 3, stride=1)
    block.conv = Conv2d(3, 3, 1, norm=nn.BatchNorm2d(3))
    assert block.freeze() is block
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)
    assert not any(p.requires_grad for p in block.parameters())


def test_get_norm():
    """Names, functions and no norm are accepted; the error for an unknown name lists the names."""
    for name, kind in {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d, "GN": nn.GroupNorm}.items():
        assert type(get_norm(name, 64)) is kind
    assert get_norm("", 64) is None and get_norm(None, 64) is None
    assert get_norm(lambda channels: nn.GroupNorm(2, channels), 8).num_groups == 2
    with pytest.raises(ValueError, match="'BatchNorm'.*FrozenBN"):
        get_norm("BatchNorm", 64)


def test_conv2d_applies_norm_then_activation():
    """The norm comes before the activation."""
    conv = Conv2d(2, 3, 1, norm=nn.BatchNorm2d(3), activation=torch.relu)
    x = torch.randn(4, 2, 5, 5)
    plain = torch.nn.functional.conv2d(x, conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), torch.relu(torch.nn.functional.batch_norm(plain, None, None, training=True)))


def test_tensor_helpers():
    """A single tensor is not copied."""
    x = torch.ones(3)
    assert cat([x]) is x
    assert cat([x, x]).shape == (6,)
