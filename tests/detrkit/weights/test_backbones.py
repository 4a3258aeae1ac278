"""Backbones as their authors publish them: recognised, checked against the config, and loaded for a training."""

import re

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detectron2.modeling import SwinTransformer, ViT
from detectron2.modeling.backbone.swin import PatchMerging
from torch import nn

from align_detr._platform import is_upstream
from detrkit.commands.weights import main as weights
from detrkit.config.load import get_config
from detrkit.training.checkpoints import SafeCheckpointer
from detrkit.weights import families, prepare_config, recognise
from detrkit.weights.parts import merging_from_mmdet

SWIN = dict(embed_dim=16, depths=[1, 2, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, drop_path_rate=0.0)
VIT = dict(img_size=32, patch_size=4, embed_dim=16, depth=2, num_heads=2, window_size=3, window_block_indexes=[0])


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def small_swin(**changes):
    cfg = get_config("baselines/dino_swin_tiny_224_4scale_12ep.py")
    cfg.model.backbone.update({**SWIN, **changes})
    return shrunk(cfg, {f"p{i}": 2**i * cfg.model.backbone.embed_dim for i in (1, 2, 3)})


def small_vit(**changes):
    cfg = get_config("baselines/dino_vitdet_base_4scale_12ep.py")
    cfg.model.backbone.net.update({**VIT, **changes})
    return shrunk(cfg, {})


def shrunk(cfg, channels):
    cfg.train.device = "cpu"
    cfg.model.device = "cpu"
    for name, width in channels.items():
        cfg.model.neck.input_shapes[name].channels = width
    for part in ("encoder", "decoder"):
        cfg.model.transformer[part].num_layers = 1
        cfg.model.transformer[part].feedforward_dim = 32
    return cfg


def swin_file(path):
    """A file with the names of Microsoft's release, and the backbone it is of."""
    backbone = randomised(SwinTransformer(**SWIN))
    state = {name: t for name, t in backbone.state_dict().items() if not re.match(r"norm\d", name)}
    state["layers.1.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    state |= {"norm.weight": torch.ones(128), "norm.bias": torch.ones(128)}
    state |= {"head.weight": torch.zeros(1000, 128), "head.bias": torch.zeros(1000)}
    torch.save({"model": state}, path)
    return backbone


def vit_file(path, pixels=56, more=None, key="model"):
    """A file with the names of MAE's release, and the backbone it is of."""
    backbone = randomised(ViT(**VIT, use_rel_pos=True, pretrain_img_size=pixels))
    state = {name: t for name, t in backbone.state_dict().items() if "rel_pos" not in name}
    state |= {"cls_token": torch.zeros(1, 1, 16), "norm.weight": torch.ones(16), "norm.bias": torch.ones(16)}
    state |= more or {}
    torch.save({key: state} if key else state, path)
    return backbone


def loaded(cfg, path):
    """The model of a config after its training has read its first weights."""
    prepare_config(cfg, path, for_training=True)
    model = instantiate(cfg.model)
    SafeCheckpointer(model).load(str(path))
    return model.eval()


def test_microsofts_swin_begins_a_training(tmp_path):
    """All but the classifier and the masks of one image size arrives, under the names of the detector's backbone."""
    theirs = swin_file(tmp_path / "swin_tiny_patch4_window7_224.pth")
    model = loaded(small_swin(), tmp_path / "swin_tiny_patch4_window7_224.pth")
    for name, tensor in model.backbone.state_dict().items():
        if not re.match(r"norm\d", name):
            torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(("changes", "key"), [(dict(window_size=7), "window_size"), (dict(embed_dim=32), "embed_dim")])
def test_a_swin_of_another_size_is_refused(tmp_path, changes, key):
    """Half of the weights at their initial value would look like a bad learning rate."""
    swin_file(tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=rf"swin.pth .*model.backbone.{key} is \d+ there, \d+ here"):
        prepare_config(small_swin(**changes), tmp_path / "swin.pth", for_training=True)


def test_a_swin_for_a_resnet_is_refused(tmp_path):
    swin_file(tmp_path / "swin.pth")
    with pytest.raises(ValueError, match="model.backbone.embed_dim is 16 there, None here"):
        prepare_config(get_config("baselines/dino_r50_4scale_12ep.py"), tmp_path / "swin.pth", for_training=True)


@pytest.mark.parametrize("pixels", [56, 72])
def test_maes_vit_begins_a_training(tmp_path, pixels):
    """The position embedding keeps its size, which the config takes from the file."""
    more = {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(8, 16)}
    theirs = vit_file(tmp_path / "mae.pth", pixels, more)
    cfg = small_vit()
    model = loaded(cfg, tmp_path / "mae.pth")
    assert cfg.model.backbone.net.pretrain_img_size == pixels
    state = model.backbone.net.state_dict()
    for name, tensor in theirs.state_dict().items():
        if "rel_pos" not in name:
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_a_vit_of_another_depth_is_refused(tmp_path):
    vit_file(tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="model.backbone.net.depth is 2 there, 3 here"):
        prepare_config(small_vit(depth=3), tmp_path / "mae.pth", for_training=True)


def test_dinov2_gives_the_features_of_timm(tmp_path, timm):
    """DINOv2 multiplies each branch by a factor a channel; in the layer before it, that is the same function."""
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=56, patch_size=4, embed_dim=16, depth=2, num_heads=2, init_values=0.5, num_classes=0
    )
    randomised(theirs)
    state = theirs.state_dict()
    state["mask_token"] = torch.zeros(1, 16)
    torch.save(state, tmp_path / "dinov2_vitb14_pretrain.pth")
    cfg = small_vit(use_rel_pos=False, window_block_indexes=[])
    net = loaded(cfg, tmp_path / "dinov2_vitb14_pretrain.pth").backbone.net
    image = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        tokens = theirs.patch_embed(image) + theirs.pos_embed[:, 1:]  # without class token, as the detector has it
        for block in theirs.blocks:
            tokens = block(tokens)
        expected = tokens.transpose(1, 2).unflatten(2, (14, 14))
        torch.testing.assert_close(net(image)["last_feat"], expected, rtol=1e-4, atol=1e-4)


def test_dinov2_with_gated_perceptrons_is_refused(tmp_path):
    more = {"blocks.0.ls1.gamma": torch.ones(16), "blocks.0.mlp.w12.weight": torch.ones(8, 16)}
    vit_file(tmp_path / "vitg.pth", more=more, key=None)
    with pytest.raises(ValueError, match="vitg.pth has gated perceptrons"):
        prepare_config(small_vit(), tmp_path / "vitg.pth", for_training=True)


@pytest.mark.parametrize(
    ("write", "title", "backbone"),
    [
        (swin_file, "Microsoft's Swin Transformer", "SwinTransformer"),
        (vit_file, "a plain ViT, such as MAE's", "ViT"),
        (
            lambda path: vit_file(
                path, more={f"blocks.{i}.ls{j}.gamma": torch.ones(16) for i in (0, 1) for j in (1, 2)}
            ),
            "DINOv2's ViT",
            "ViT",
        ),
    ],
)
def test_inspect_tells_what_a_backbone_is(tmp_path, capsys, write, title, backbone):
    write(tmp_path / "weights.pth")
    weights(["inspect", str(tmp_path / "weights.pth")])
    out = capsys.readouterr().out
    assert f"format     {title}\nbackbone   {backbone}\n" in out
    assert "unknown:" not in out and "classes " not in out


def test_backbones_are_no_formats_to_write_detectors_in():
    assert not {"microsoft_swin", "plain_vit", "dinov2", "microsoft", "mae"} & set(families())


def test_detectors_of_detrex_are_not_taken_for_backbones():
    """A published Swin or ViTDet row has detrex's names, and loads without a conversion."""
    for cfg in (small_swin(), small_vit()):
        assert recognise(instantiate(cfg.model).state_dict()) is None


def test_a_published_row_of_detrex_loads_whole(tmp_path):
    """Its file has the names of detectron2's backbones, which the recordings hold the engine's to."""
    for number, cfg in enumerate((small_swin(), small_vit())):
        theirs, ours = instantiate(cfg.model), instantiate(cfg.model)
        torch.save({"model": randomised(theirs).state_dict()}, tmp_path / f"{number}.pth")
        SafeCheckpointer(ours).load(str(tmp_path / f"{number}.pth"))
        for name, tensor in ours.state_dict().items():
            torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_a_merging_of_mmdetection_is_reordered(size):
    """mmdetection unfolds 2 × 2 cells channel by channel; the converted layer gives the same numbers."""
    merging = randomised(PatchMerging(6, nn.LayerNorm))
    x = torch.randn(2, *size, 6)
    padded = F.pad(x.permute(0, 3, 1, 2), (0, size[1] % 2, 0, size[0] % 2))
    with torch.no_grad():
        unfolded = F.unfold(padded, 2, stride=2).transpose(1, 2)
        expected = merging.reduction(merging.norm(unfolded))
        for p in (merging.reduction.weight, merging.norm.weight, merging.norm.bias):
            p.copy_(merging_from_mmdet(p))
        # detectron2's own takes cells in a row, and the size of the map
        merged = merging(x.flatten(1, 2), *size) if is_upstream() else merging(x).flatten(1, 2)
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)
