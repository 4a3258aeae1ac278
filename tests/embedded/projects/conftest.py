"""Detectors of the recorded sizes, and checks for all detectors."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone import BasicStem, BottleneckBlock, ResNet
from detectron2.structures import Boxes, Instances
from detrex.layers import PositionEmbeddingSine, ShapeSpec
from detrex.modeling.neck import ChannelMapper
from torch import nn

from detrkit.config.load import get_config


def small_parts(config: dict) -> dict:
    """Backbone, neck and position embedding of a recorded model, for any `config["embed_dim"]` (default 256)."""
    recipe, embed_dim = config["backbone"], config.get("embed_dim", 256)
    widths = recipe["stage_out"]
    blocks = recipe["blocks_per_stage"]
    stages = [
        ResNet.make_stage(
            BottleneckBlock,
            blocks,
            in_channels=before,
            out_channels=width,
            bottleneck_channels=width // 4,
            stride_per_block=[1 if before == recipe["stem_out"] else 2] + [1] * (blocks - 1),
            stride_in_1x1=recipe["stride_in_1x1"],
            norm=recipe["norm"],
        )
        for before, width in zip([recipe["stem_out"], *widths], widths, strict=False)
    ]
    names = ["res3", "res4", "res5"]
    return {
        "backbone": ResNet(
            BasicStem(3, recipe["stem_out"], norm=recipe["norm"]),
            stages,
            out_features=names,
            freeze_at=recipe["freeze_at"],
        ),
        "neck": ChannelMapper(
            {name: ShapeSpec(channels=width) for name, width in zip(names, widths[1:], strict=True)},
            names,
            embed_dim,
            kernel_size=1,
            num_outs=4,
            norm_layer=nn.GroupNorm(32, embed_dim),
        ),
        "position_embedding": PositionEmbeddingSine(
            **{**config["position_embedding"], "num_pos_feats": embed_dim // 2}
        ),
        "embed_dim": embed_dim,
        "num_classes": config["num_classes"],
    }


def recorded_backbone(config: dict) -> ResNet:
    """The backbone of a recorded model on one feature map."""
    stages, width, blocks = [], config["stem_out"], config["blocks_per_stage"]
    for out_channels, dilation in zip(config["stage_out"], (1, 1, 1, config["res5_dilation"]), strict=True):
        stride = 2 if stages and dilation == 1 else 1
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
    return ResNet(stem, stages, out_features=["res5"], freeze_at=config["freeze_at"])


def transformer_config(config: dict, part: str) -> dict:
    return {**config[part], "embed_dim": config.get("embed_dim", 256)}


def small_images(*sizes: tuple[int, int], objects: int = 3, num_classes: int = 5, seed: int = 0) -> list[dict]:
    """Random images of (height, width) with `objects` boxes each; the last one has twice the size in the output."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for height, width in sizes:
        corner, extent = torch.rand(2, objects, 2, generator=generator)
        boxes = torch.cat([corner * 0.5, corner * 0.5 + 0.1 + extent * 0.4], dim=1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes * torch.tensor([width, height, width, height]))
        instances.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator).float()
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    batch[-1] |= {"height": 2 * batch[-1]["height"], "width": 2 * batch[-1]["width"]}
    return batch


def recorded_inputs(case) -> list[dict]:
    batch = []
    for recorded in case.input:
        instances = Instances(tuple(recorded["image"].shape[-2:]))
        instances.gt_boxes = Boxes(recorded["gt_boxes"])
        instances.gt_classes = recorded["gt_classes"]
        size = {key: int(recorded[key]) for key in ("height", "width")}
        batch.append({"image": recorded["image"], "instances": instances, **size})
    return batch


def leaves(node, path: str = "") -> dict:
    if isinstance(node, torch.Tensor):
        return {path: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {k: v for key, child in items for k, v in leaves(child, f"{path}.{key}".lstrip(".")).items()}


def check_training_step(model: nn.Module, case) -> None:
    """Raw outputs, losses and gradient norms of a recorded model, at the tolerances of its recording."""
    model.load_state_dict(case.state)
    model.train()
    batch, seen = recorded_inputs(case), []
    model.criterion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    losses = model(batch)
    outputs = leaves(seen[0])
    for name, expected in leaves(case.output["train_outputs"]).items():
        torch.testing.assert_close(outputs[name], expected, rtol=0, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")

    assert losses.keys() == case.output["losses"].keys()
    for name, expected in case.output["losses"].items():
        torch.testing.assert_close(losses[name].reshape(()), expected.reshape(()), rtol=5e-4, atol=1e-6)

    sum(losses.values()).sum().backward()
    norms = leaves(case.output["grad_norms"])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == norms.keys()
    for name, expected in norms.items():
        torch.testing.assert_close(
            gradients[name].norm(), expected, rtol=5e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def check_recording(model: nn.Module, case) -> None:
    """A recorded model's training step, and its detections, in their order."""
    check_training_step(model, case)
    model.eval()
    for one, expected in zip(recorded_inputs(case), case.output["detections"], strict=True):
        with torch.no_grad():
            detections = model([one])[0]["instances"]
        assert list(detections.image_size) == expected["image_size"].tolist()
        torch.testing.assert_close(detections.scores, expected["scores"], rtol=0, atol=2e-4)
        torch.testing.assert_close(detections.pred_boxes.tensor, expected["pred_boxes"], rtol=0, atol=0.02)
        assert torch.equal(detections.pred_classes, expected["pred_classes"])


def check_detected(ours: Instances, scores, boxes, classes) -> None:
    """Check that our detections contain the given ones, and that the best scores agree.

    Queries whose scores differ only by rounding may come in any order, also at the cut: ours may be more.
    """
    torch.testing.assert_close(ours.scores[: len(scores)], scores, rtol=2e-4, atol=1e-6)
    apart = (ours.pred_boxes.tensor[:, None] - boxes).abs().amax(-1) + 1e6 * (ours.pred_classes[:, None] != classes)
    assert apart.amin(0).max() < 0.02


@torch.no_grad()
def check_recorded_detections(model: nn.Module, case) -> None:
    """Compare detections with the recorded ones: images one by one, and all in a batch."""
    model.load_state_dict(case.state)
    model.eval()
    model.select_box_nums_for_evaluation = case.config["num_queries"] * case.config["num_classes"]
    inputs = recorded_inputs(case)
    alone = [model([image])[0]["instances"] for image in inputs]
    together = [result["instances"] for result in model(inputs)]
    for single, batched, expected in zip(alone, together, case.output["detections"], strict=True):
        for ours in (single, batched):
            assert list(ours.image_size) == expected["image_size"].tolist()
            check_detected(ours, expected["scores"], expected["pred_boxes"], expected["pred_classes"])


def check_gradients(model: nn.Module, batch: list[dict]) -> dict:
    """Take one step, check that every trainable parameter has a finite gradient, and return the losses."""
    model.train().zero_grad(set_to_none=True)
    losses = model(batch)
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"no gradient: {missing}"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert all(torch.isfinite(loss) for loss in losses.values())
    return losses


def check_batched_inference(model: nn.Module, batch: list[dict]) -> None:
    """Compare detections of a padded batch with those of its images one by one, for a model that prefers padding."""
    model.eval()
    check_same_detections(model, batch)
    with torch.no_grad():
        blank = model.transformer.enc_output_norm(model.transformer.enc_output.bias)
        model.class_embed[-1].weight.copy_(blank.expand_as(model.class_embed[-1].weight))
    check_same_detections(model, batch)


@torch.no_grad()
def check_same_detections(model: nn.Module, batch: list[dict]) -> None:
    together = [result["instances"] for result in model(batch)]
    alone = [model([one])[0]["instances"] for one in batch]
    for padded, single in zip(together, alone, strict=True):
        torch.testing.assert_close(padded.scores, single.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(padded.pred_boxes.tensor, single.pred_boxes.tensor, rtol=0, atol=1e-2)
        assert torch.equal(padded.pred_classes, single.pred_classes)


def check_full_size(config_path: str, *sizes: tuple[int, int]) -> None:
    """Build a published config's model, train one step, and detect in every image."""
    cfg = LazyConfig.apply_overrides(get_config(config_path), ["train.device=cpu"])
    model = instantiate(cfg.model)
    batch = small_images(*sizes, num_classes=80)
    losses = check_gradients(model, batch)
    assert model.criterion.weight_dict.keys() <= losses.keys()
    model.eval()
    with torch.no_grad():
        results = [result["instances"] for result in model(batch)]
    assert [len(detections) for detections in results] == [300] * len(batch)


def contract(name: str) -> dict:
    return json.loads((Path(__file__).parents[2] / "contract" / f"state_dict_{name}.json").read_text())


def check_contract(model: nn.Module, name: str) -> None:
    """Names, shapes and order of parameters and buffers: checkpoints and optimizer states move both ways."""
    expected = contract(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected["keys"]
    assert list(model.state_dict()) == list(expected["keys"])
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == expected["parameters"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == expected["trainable"]


@pytest.fixture(scope="session")
def small():
    """Builders and inputs of small detectors: `parts`, `backbone`, `transformer_config`, `images`."""
    return SimpleNamespace(
        parts=small_parts, backbone=recorded_backbone, transformer_config=transformer_config, images=small_images
    )


@pytest.fixture(scope="session")
def check():
    """The checks of this module."""
    return SimpleNamespace(
        recording=check_recording,
        training_step=check_training_step,
        recorded_detections=check_recorded_detections,
        detected=check_detected,
        gradients=check_gradients,
        batched_inference=check_batched_inference,
        same_detections=check_same_detections,
        contract=check_contract,
        full_size=check_full_size,
    )
