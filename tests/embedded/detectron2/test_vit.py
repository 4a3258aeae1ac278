"""Plain ViT and its feature pyramid: detectron2's numbers, timm's with the same weights, and the arguments."""

import importlib
import math
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.modeling import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from recorded_backbones import assert_as_recorded, loss_of
from reference.vit_attention import reference_attention, reference_relative_attention

SMALL = dict(
    img_size=64,
    patch_size=8,
    embed_dim=24,
    depth=3,
    num_heads=3,
    window_size=3,
    window_block_indexes=(0, 2),
    use_rel_pos=True,
    rel_pos_zero_init=False,
    pretrain_img_size=56,
)


def randomised(model):
    """`model` with norms, biases and positions that are not those it starts with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("image", [0, 1])
def test_features_and_gradients_match_recording(golden, image):
    """Checkpoints move both ways: keys, features and gradients are detectron2's, with windows that do not divide the
    map, and at a size that is not the pretraining's."""
    case = golden("vit_simple_pyramid")
    backbone = SimpleFeaturePyramid(
        ViT(**case.config["vit"]), top_block=LastLevelMaxPool(), **case.config["pyramid"]
    ).eval()
    backbone.load_state_dict(case.state, strict=True)
    assert_as_recorded(backbone, case, image)


def test_features_are_those_of_timms_plain_vit(timm):
    """A second implementation agrees on global attention with absolute positions: what MAE's weights are for."""
    ours = ViT(
        img_size=64,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        pretrain_img_size=64,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    randomised(ours).eval()
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=64,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        class_token=False,
        global_pool="avg",
        fc_norm=True,
    ).eval()
    state = {**ours.state_dict(), "pos_embed": ours.pos_embed.detach()[:, 1:]}
    result = theirs.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and all(n.startswith(("fc_norm", "head")) for n in result.missing_keys)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = theirs.forward_features(image)
        expected = tokens.transpose(1, 2).unflatten(2, (8, 8))
        torch.testing.assert_close(ours(image)["last_feat"], expected, rtol=1e-4, atol=1e-4)


def test_features_are_those_of_timms_vit_with_windows(timm):
    """A second implementation agrees on windows with padding and on decomposed relative positions."""
    ours = randomised(ViT(**{**SMALL, "pretrain_img_size": 64}, norm_layer=partial(nn.LayerNorm, eps=1e-6))).eval()
    theirs = timm.models.vision_transformer_sam.VisionTransformerSAM(
        img_size=64,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        window_size=3,
        global_attn_indexes=(1,),
        use_rel_pos=True,
        neck_chans=None,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    theirs.neck = nn.Identity()
    positions = ours.pos_embed.detach()[:, 1:].unflatten(1, (8, 8))
    result = theirs.load_state_dict({**ours.state_dict(), "pos_embed": positions}, strict=False)
    assert not result.unexpected_keys and not [n for n in result.missing_keys if "blocks" in n]
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)["last_feat"], theirs.forward_features(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (8, 10)])
def test_attention_is_the_plain_formula(size):
    """Windows, their padding, and tables of another size: against every score and position held in memory."""
    for block in randomised(ViT(**SMALL)).double().blocks[:2]:
        x = torch.randn(2, *size, 24, dtype=torch.float64)
        torch.testing.assert_close(block.attn(x), reference_attention(block.attn, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ["relative_attention", "fused_attention"])
def test_relative_attention_and_its_gradients(attention, monkeypatch):
    """Blocks of scores on the CPU, and one fused call elsewhere, give what the formula gives."""
    module = importlib.import_module("detectron2.modeling.backbone.relative_attention")
    monkeypatch.setattr(module, "BLOCK_SCORES", 40)
    shapes = [(2, 3, 12, 4)] * 3 + [(2, 3, 12, 3), (2, 3, 12, 4)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    outputs = [function(*inputs) for function in (getattr(module, attention), reference_relative_attention)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(outputs[0])
    for found, expected in zip(*(torch.autograd.grad((o * weights).sum(), inputs) for o in outputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_changes_no_gradient(drop_path_rate):
    """`use_act_checkpoint` saves memory, nothing else."""
    plain = ViT(**SMALL, drop_path_rate=drop_path_rate)
    saving = ViT(**SMALL, drop_path_rate=drop_path_rate, use_act_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(3, 3, 48, 64)
    for backbone in (plain, saving):
        torch.manual_seed(1)
        loss_of(backbone(image)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-8, msg=name)


def test_residual_blocks_start_as_the_identity():
    """ViTDet's variant with convolutions can begin with the weights of a plain ViT."""
    plain, with_convolutions = ViT(**SMALL).eval(), ViT(**SMALL, residual_block_indexes=(0, 2)).eval()
    assert not with_convolutions.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    image = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(with_convolutions(image), plain(image), rtol=0, atol=0)


def test_positions_of_another_size_are_interpolated():
    """A smooth field of positions stays one; the class token's is left out."""
    from detectron2.modeling.backbone.vit import resize_positions

    side = torch.linspace(0, 1, 6)
    field = torch.stack([side[:, None].expand(6, 6), side[None].expand(6, 6)], dim=-1)
    positions = torch.cat([torch.full((1, 1, 2), 9.0), field.flatten(0, 1)[None]], dim=1)
    assert torch.equal(resize_positions(positions, True, (6, 6))[0], field)
    wide = resize_positions(positions, True, (6, 12))[0]
    assert wide.shape == (6, 12, 2) and wide.max() < 1.1
    torch.testing.assert_close(wide[:, 5:7, 1].mean(), torch.tensor(0.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("backbone.net.pos_embed", 0),
        ("backbone.net.patch_embed.proj.weight", 0),
        ("backbone.net.blocks.0.attn.qkv.weight", 1),
        ("backbone.net.blocks.11.mlp.fc1.bias", 12),
        ("backbone.net.blocks.3.residual.conv1.weight", 13),
        ("backbone.simfp_4.0.weight", 13),
        ("transformer.encoder.layers.0.norms.0.weight", 13),
    ],
)
def test_layerwise_decay_of_the_learning_rate(name, depth):
    """Embeddings learn slowest, the heads at the full rate."""
    assert get_vit_lr_decay_rate(name, lr_decay_rate=0.7, num_layers=12) == pytest.approx(0.7 ** (13 - depth))


def test_layerwise_decay_with_a_wrong_depth_is_refused():
    with pytest.raises(ValueError, match="num_layers=12"):
        get_vit_lr_decay_rate("backbone.net.blocks.12.norm1.weight", 0.7, 12)


@pytest.mark.parametrize("scales", [(4.0, 2.0, 1.0, 0.5), (2.0, 1.0, 0.5), (1.0,)])
def test_levels_of_the_pyramid(scales):
    """A neck is built from `output_shape` before the first image."""
    pyramid = SimpleFeaturePyramid(
        ViT(**{**SMALL, "patch_size": 16}),
        "last_feat",
        16,
        scales,
        top_block=LastLevelMaxPool() if len(scales) > 1 else None,
        square_pad=64,
    )
    features = pyramid(torch.randn(1, 3, 64, 64))
    shapes = pyramid.output_shape()
    assert list(features) == list(shapes)
    for key, feature in features.items():
        assert feature.shape == (1, 16, 64 // shapes[key].stride, 64 // shapes[key].stride)
        assert key == f"p{int(math.log2(shapes[key].stride))}"
    assert pyramid.padding_constraints["square_size"] == 64


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViT(embed_dim=10, num_heads=3), "embed_dim=10"),
        (lambda: SimpleFeaturePyramid(ViT(**SMALL), "last_feat", 8, (3.0,)), "a scale is 3.0"),
        (lambda: SimpleFeaturePyramid(ViT(**SMALL), "last_feat", 8, (2.0, 0.5)), "half of the one before"),
        (lambda: SimpleFeaturePyramid(ViT(**SMALL), "p3", 8, (1.0,)), "in_feature='p3'"),
        (lambda: ViT(**SMALL)(torch.zeros(1, 3, 7, 20)), "smaller than a patch"),
    ],
)
def test_contradictions_are_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        build()
    assert "\n" not in str(error.value)


def test_export_takes_images_of_other_sizes():
    """A graph traced at one size runs at others."""
    backbone = randomised(SimpleFeaturePyramid(ViT(**SMALL), "last_feat", 8, (2.0, 1.0, 0.5))).eval()
    height, width = (torch.export.Dim(name, min=4, max=30) for name in ("height", "width"))
    program = torch.export.export(
        backbone, (torch.randn(1, 3, 64, 96),), dynamic_shapes=({2: 8 * height, 3: 8 * width},), strict=False
    )
    image = torch.randn(1, 3, 48, 80)
    for key, value in program.module()(image).items():
        torch.testing.assert_close(value, backbone(image)[key], rtol=1e-4, atol=1e-5)
