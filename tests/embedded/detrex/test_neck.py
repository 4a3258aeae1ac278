"""ChannelMapper."""

import pytest
import torch
from detrex.layers import ShapeSpec
from detrex.modeling.neck import ChannelMapper
from torch import nn


def build(**kwargs) -> ChannelMapper:
    shapes = {name: ShapeSpec(channels=width) for name, width in {"res3": 8, "res4": 12, "res5": 16}.items()}
    options = {"out_channels": 6, "kernel_size": 1, "norm_layer": nn.GroupNorm(2, 6)} | kwargs
    return ChannelMapper(shapes, in_features=["res3", "res4", "res5"], **options)


def features():
    return {"res3": torch.randn(2, 8, 20, 28), "res4": torch.randn(2, 12, 10, 14), "res5": torch.randn(2, 16, 5, 7)}


def test_extra_levels_start_from_the_backbone():
    """The first extra level comes from the last backbone feature, the next from the level before it."""
    neck, inputs = build(num_outs=5), features()
    outs = neck(inputs)
    assert [tuple(out.shape[1:]) for out in outs] == [(6, 20, 28), (6, 10, 14), (6, 5, 7), (6, 3, 4), (6, 2, 2)]
    torch.testing.assert_close(outs[3], neck.extra_convs[0](inputs["res5"]))
    torch.testing.assert_close(outs[4], neck.extra_convs[1](outs[3]))


def test_levels_do_not_share_their_norm():
    """`norm_layer` is copied: each level has its own parameters."""
    neck = build(num_outs=4)
    norms = [module for module in neck.modules() if isinstance(module, nn.GroupNorm)]
    assert len({id(norm.weight) for norm in norms}) == 4


def test_no_extra_level_unless_asked():
    """By default, one output for each feature."""
    assert len(build()(features())) == 3
    with pytest.raises(ValueError, match="num_outs=2"):
        build(num_outs=2)
