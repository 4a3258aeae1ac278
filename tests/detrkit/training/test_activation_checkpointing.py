"""Activation checkpointing: the same losses and gradients from less memory."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.backbone import BottleneckBlock
from detectron2.structures import Boxes, Instances
from detrex.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from detrkit.config.load import get_config
from detrkit.training.activation_checkpointing import checkpoint_activations
from detrkit.training.builders import build_model

sys.path.insert(0, str(Path(__file__).parents[2] / "align_detr"))

from small_backbones import small

KINDS = ("resnet", "swin", "vit", "h_detr", "dab_detr", "conditional_detr")


def config_of(kind):
    """A small detector with dropout, and stochastic depth in the backbones that have it."""
    if kind in ("swin", "vit", "h_detr"):
        rows = {
            "swin": "align_detr_swin_tiny_224_4scale_12ep",
            "vit": "align_detr_vitdet_base_4scale_12ep",
            "h_detr": "align_h_deformable_detr_swin_tiny_two_stage_12ep",
        }
        cfg = small(rows[kind])
        getattr(cfg.model.backbone, "net", cfg.model.backbone).drop_path_rate = 0.4
    else:
        cfg = get_config(f"baselines/{'dino' if kind == 'resnet' else kind}_tiny.py")
        cfg.model.backbone = resnet(cfg.model.backbone.out_features)
    cfg.train.device = cfg.model.device = "cpu"
    for part in ("encoder", "decoder"):
        cfg.model.transformer[part].attn_dropout = cfg.model.transformer[part].ffn_dropout = 0.1
    return cfg


def resnet(out_features):
    """The tiny configs' ResNet with frozen norms, as the published detectors have them."""
    stages = [
        L(ResNet.make_stage)(
            block_class=BottleneckBlock, num_blocks=2, in_channels=channels, out_channels=2 * channels,
            bottleneck_channels=channels, stride_per_block=[1 if channels == 32 else 2, 1], norm="FrozenBN",
        )
        for channels in (32, 64, 128)
    ]  # fmt: skip
    stem = L(BasicStem)(in_channels=3, out_channels=32, norm="FrozenBN")
    return L(ResNet)(stem=stem, stages=stages, out_features=out_features, freeze_at=1)


def two_images():
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in ((64, 80), (72, 64)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[5.0, 8.0, 30.0, 40.0], [20.0, 20.0, 60.0, 60.0]]))
        instances.gt_classes = torch.tensor([0, 2])
        image = torch.rand(3, height, width, generator=generator) * 255
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def step(model):
    """Losses, gradients by name, and the bytes that the forward pass keeps."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = model(two_images())
    forward = sum(kept.values())
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, forward


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_stay(kind):
    """Each layer draws the same dropout and drops the same branches in both of its passes."""
    torch.manual_seed(0)
    plain = instantiate(config_of(kind).model).train()
    saving = copy.deepcopy(plain)
    assert checkpoint_activations(saving) > 5
    losses, gradients, kept = step(plain)
    found, found_gradients, found_kept = step(saving)
    for name, loss in losses.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-6, atol=1e-7, msg=name)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert found_kept < 0.8 * kept


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_backbone_encoder_and_decoder_is_one(kind):
    """A block that is forgotten keeps as much memory as all of the others save."""
    model = instantiate(config_of(kind).model)
    expected = len(model.transformer.encoder.layers) + len(model.transformer.decoder.layers)
    if kind in ("swin", "h_detr"):
        expected += sum(len(stage.blocks) for stage in model.backbone.layers)
    elif kind == "vit":
        expected += len(model.backbone.net.blocks)
    else:
        expected += 1 + 6  # the stem
    assert checkpoint_activations(model) == expected


def test_blocks_of_timm_are_found(timm):
    """In any model that names its lists of blocks as most of timm's do."""
    for name in ("convnext_atto", "resnet10t", "vit_tiny_patch16_224"):
        model = nn.Module()
        model.backbone = timm.create_model(name, features_only=True)
        timm.layers.freeze_batch_norm_2d(model.backbone)
        assert checkpoint_activations(model) >= 4, name


def test_batch_norm_is_updated_once():
    """The second pass of a block would move the running statistics again."""
    cfg = get_config("baselines/dino_tiny.py")
    cfg.train.device = cfg.model.device = "cpu"
    torch.manual_seed(0)
    plain = instantiate(cfg.model).train()
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    for model in (plain, saving):
        step(model)
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0, msg=name)


def test_a_copy_of_the_model_is_one():
    """Averaged weights and exports copy the model: a copy must not run the layers of the original."""
    model = instantiate(config_of("vit").model).train()
    checkpoint_activations(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert all(not value.any() for value in other.backbone.net(torch.randn(1, 3, 64, 64)).values())
    assert any(value.any() for value in model.backbone.net(torch.randn(1, 3, 64, 64)).values())


@pytest.mark.parametrize("is_on", [False, True])
def test_the_key_of_the_config(is_on, caplog):
    """Off by default; on, the log says so, and names of the state dict stay."""
    cfg = config_of("vit")
    assert cfg.train.activation_checkpointing is False
    names = build_model(cfg).state_dict().keys()
    cfg.train.activation_checkpointing = is_on
    with caplog.at_level("INFO"):
        model = build_model(cfg)
    assert model.state_dict().keys() == names
    assert ("Activation checkpointing of 6 layers" in caplog.text) == is_on
