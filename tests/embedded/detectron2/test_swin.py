"""Swin Transformer: detectron2's numbers, timm's with the same weights, and the arguments."""

import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import SwinTransformer
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from recorded_backbones import assert_as_recorded, loss_of

SMALL = dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4, drop_path_rate=0.0)


def randomised(model):
    """`model` with norms, biases and positions that are not those it starts with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("name", ["swin_tiny_like", "swin_tiny_like_ape"])
def test_features_and_gradients_match_recording(golden, name, image):
    """Checkpoints move both ways: keys, features and gradients are detectron2's, at sizes that need padding."""
    case = golden(name)
    backbone = SwinTransformer(**case.config["model"]).eval()
    backbone.load_state_dict(case.state, strict=True)
    assert_as_recorded(backbone, case, image)


def under_names_of_timm(state):
    """The official names as timm's: a merging belongs to the stage that follows it."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name)
        renamed[re.sub(r"layers\.(\d)\.", r"layers_\1.", name)] = tensor
    return renamed


@pytest.mark.parametrize("window_size", [4, 8])
def test_features_are_those_of_timm_with_the_same_weights(timm, window_size):
    """A second implementation agrees on attention in shifted windows, masks, relative positions and the merging."""
    ours = SwinTransformer(**{**SMALL, "window_size": window_size})
    randomised(ours).eval()
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        img_size=512,
        embed_dim=16,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=window_size,
        always_partition=True,
    ).eval()
    state = {
        name: tensor
        for name, tensor in ours.state_dict().items()
        if not re.fullmatch(r"norm\d\..*", name) and "relative_position_index" not in name
    }
    result = theirs.load_state_dict(under_names_of_timm(state), strict=False)
    assert not result.unexpected_keys
    assert all("relative_position_index" in name or "attn_mask" in name for name in result.missing_keys)
    image = torch.randn(2, 3, 512, 512)
    with torch.no_grad():
        for i, feature in enumerate(theirs(image)):
            normed = getattr(ours, f"norm{i}")(feature).permute(0, 3, 1, 2)
            torch.testing.assert_close(ours(image)[f"p{i}"], normed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (37, 90), (5, 3)])
def test_an_image_of_any_size_alone_and_in_a_batch(size):
    """Detectors batch images, and evaluate them one by one."""
    backbone = randomised(SwinTransformer(**SMALL)).eval()
    images = torch.randn(2, 3, *size)
    together = backbone(images)
    for key, value in backbone(images[1:]).items():
        torch.testing.assert_close(together[key][1:], value, rtol=1e-4, atol=1e-5)
        stride = backbone.output_shape()[key].stride
        assert value.shape[2:] == tuple(-(-length // stride) for length in size)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_changes_no_gradient(drop_path_rate):
    """`use_checkpoint` saves memory, nothing else; the blocks that are dropped are the same ones in both passes."""
    plain = SwinTransformer(**{**SMALL, "drop_path_rate": drop_path_rate}, attn_drop_rate=0.1, drop_rate=0.1)
    saving = SwinTransformer(
        **{**SMALL, "drop_path_rate": drop_path_rate}, attn_drop_rate=0.1, drop_rate=0.1, use_checkpoint=True
    )
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(3, 3, 48, 64)
    for backbone in (plain, saving):
        torch.manual_seed(1)
        loss_of(backbone(image)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-8, msg=name)


def test_stochastic_depth_keeps_the_mean():
    """A branch that is dropped half of the time counts twice when it is not."""
    from detectron2.modeling.backbone.swin import add_branch

    torch.manual_seed(0)
    x = torch.full((4000, 3), 5.0)
    out = add_branch(x, lambda kept: kept * 0.1, 0.5)
    assert {round(value, 3) for value in out.flatten().tolist()} == {5.0, 6.0}
    torch.testing.assert_close(out.mean(), torch.tensor(5.5), rtol=0, atol=0.05)
    assert torch.equal(out[:, 0], out[:, 1])


def test_each_parameter_has_a_gradient_whatever_is_dropped():
    """DistributedDataParallel hangs if a process has no gradient of a parameter."""
    backbone = SwinTransformer(**{**SMALL, "drop_path_rate": 0.9}).train()
    for seed in range(5):
        torch.manual_seed(seed)
        backbone.zero_grad(set_to_none=True)
        loss_of(backbone(torch.randn(1, 3, 32, 32))).backward()
        assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize(
    ("frozen_stages", "names"),
    [
        (-1, ()),
        (0, ("patch_embed",)),
        (1, ("patch_embed", "absolute_pos_embed")),
        (3, ("patch_embed", "absolute_pos_embed", "layers.0", "layers.1")),
    ],
)
def test_frozen_stages(frozen_stages, names):
    """detectron2's rule of what a number freezes."""
    backbone = SwinTransformer(**SMALL, ape=True, frozen_stages=frozen_stages)
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert all(name.startswith(names) for name in frozen)
    assert frozen == {name for name, _ in backbone.named_parameters() if names and name.startswith(names)}
    loss_of(backbone.train()(torch.randn(1, 3, 32, 32))).backward()


def test_only_the_stages_asked_for():
    """Parameters that no output depends on must not wait for a gradient."""
    backbone = SwinTransformer(**SMALL, out_indices=(1, 2))
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["p1", "p2"] == list(backbone.output_shape())
    loss_of(backbone(torch.randn(1, 3, 32, 32))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_heads=(1, 2)), "depths has 4 stages, num_heads has 2"),
        (dict(embed_dim=15, num_heads=(1, 4, 4, 8)), "stage 1 has 30 channels"),
        (dict(out_indices=(0, 4)), "out_indices"),
        (dict(frozen_stages=9), "frozen_stages is 9"),
        (dict(drop_path_rate=1.0), "drop_path_rate is 1.0"),
        (dict(window_size=0), "window_size is 0"),
    ],
)
def test_contradictions_are_refused_in_one_line(arguments, message):
    """A config's mistake is one line that names it."""
    with pytest.raises(ValueError, match=message) as error:
        SwinTransformer(**{**SMALL, **arguments})
    assert "\n" not in str(error.value)


def test_onnx_runtime_agrees_at_other_sizes(tmp_path):
    """Numbers of windows, padding and masks must not be constants of the size that the graph was traced at."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = randomised(SwinTransformer(**SMALL)).requires_grad_(False)

        def forward(self, image):
            return tuple(self.backbone(image).values())

    model = Features().eval()
    names = list(model.backbone.output_shape())
    free = {0: "batch", 2: "height", 3: "width"}
    path = str(tmp_path / "swin.onnx")
    arguments = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 64, 96),),
        path,
        input_names=["image"],
        output_names=names,
        dynamic_axes={"image": free, **dict.fromkeys(names, free)},
        opset_version=17,
        **arguments,
    )
    session = runtime.InferenceSession(path)
    for size in ((64, 96), (65, 120), (70, 90), (33, 40)):
        image = torch.randn(1, 3, *size)
        for found, expected in zip(session.run(None, {"image": image.numpy()}), model(image), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
