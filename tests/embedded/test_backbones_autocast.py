"""Transformer backbones in bfloat16 autocast: features and gradients are those of float32, up to rounding."""

import pytest
import torch
from detectron2.modeling import SimpleFeaturePyramid, SwinTransformer, ViT
from detrex.modeling.backbone import EVA02_ViT

PLAIN = dict(img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, window_block_indexes=(0, 2))
PLAIN |= dict(pretrain_img_size=32)


def vit(**options):
    return ViT(**PLAIN, window_size=3, use_rel_pos=True, rel_pos_zero_init=False, **options)


def pyramid():
    return SimpleFeaturePyramid(vit(), "last_feat", 16, (2.0, 1.0, 0.5), norm="LN")


BACKBONES = {
    "swin": lambda: SwinTransformer(embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4, out_indices=(0, 1)),
    "vit": vit,
    "vit without relative positions": lambda: ViT(**PLAIN, window_size=3),
    "vit without biases": lambda: vit(qkv_bias=False),
    "pyramid": pyramid,
    "eva-02": lambda: EVA02_ViT(**{**PLAIN, "window_block_indexes": [0, 2]}, window_size=4, pt_hw_seq_len=4),
}


def features_and_gradients(backbone, image, dtype):
    backbone.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        features = backbone(image)
    torch.manual_seed(1)
    sum((f.float() * torch.randn(f.shape)).sum() for f in features.values()).backward()
    gradients = {name: p.grad.flatten() for name, p in backbone.named_parameters()}
    return {name: f.detach().float().flatten() for name, f in features.items()} | gradients


@pytest.mark.parametrize("name", BACKBONES)
def test_autocast_changes_features_and_gradients_by_rounding_only(name):
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval()  # no random depth
    image = torch.randn(1, 3, 64, 64)
    exact = features_and_gradients(backbone, image, torch.float32)
    rounded = features_and_gradients(backbone, image, torch.bfloat16)
    assert exact.keys() == rounded.keys()
    assert any(not torch.equal(rounded[name], value) for name, value in exact.items()), "autocast did nothing"
    scale = max(value.norm() for name, value in exact.items() if "." in name)  # tiny gradients are rounding alone
    for name, value in exact.items():
        difference = (rounded[name] - value).norm()
        assert difference < 0.05 * value.norm() or difference < 1e-3 * scale, f"{name}: {difference / value.norm():.3f}"
