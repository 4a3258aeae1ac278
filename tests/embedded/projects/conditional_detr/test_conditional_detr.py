"""The Conditional DETR detector: recorded numbers, published state dict, padding, layouts, precision."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detrex.layers import PositionEmbeddingSine
from detrex.modeling import HungarianMatcher, SetCriterion
from projects.conditional_detr.modeling import (
    ConditionalDETR,
    ConditionalDetrTransformer,
    ConditionalDetrTransformerDecoder,
    ConditionalDetrTransformerEncoder,
)
from torch import nn

CONFIGS = Path(__file__).resolve().parents[4] / "configs/baselines"


def load(name, *overrides):
    return LazyConfig.apply_overrides(LazyConfig.load(str(CONFIGS / f"{name}.py")), ["train.device=cpu", *overrides])


def recorded_model(case, backbone):
    """The small model of a recorded case."""
    config = case.config
    activation = getattr(nn, config["activation"])()
    return ConditionalDETR(
        backbone=backbone(config["backbone"]),
        in_features=["res5"],
        in_channels=config["backbone"]["stage_out"][-1],
        position_embedding=PositionEmbeddingSine(**config["position_embedding"]),
        transformer=ConditionalDetrTransformer(
            ConditionalDetrTransformerEncoder(**config["encoder"], activation=activation),
            ConditionalDetrTransformerDecoder(**config["decoder"], activation=activation),
        ),
        embed_dim=config["encoder"]["embed_dim"],
        num_classes=config["num_classes"],
        num_queries=config["num_queries"],
        criterion=SetCriterion(config["num_classes"], HungarianMatcher(**config["matcher"]), config["weight_dict"]),
        select_box_nums_for_evaluation=config["select_box_nums_for_evaluation"],
        device="cpu",
    )


@pytest.mark.parametrize("name", ["model_conditional_detr", "model_conditional_detr_dc5"])
def test_recording(golden, small, check, name):
    """Raw outputs, losses, gradients and detections equal the public implementation's, also in a batch."""
    case = golden(name)
    model = recorded_model(case, small.backbone)
    check.training_step(model, case)
    check.recorded_detections(model, case)


def test_the_published_config_builds_the_published_model(check):
    """Keys, shapes and order of the state dict at full size: checkpoints and optimizer states move both ways."""
    with torch.device("meta"):
        check.contract(instantiate(load("conditional_detr_r50_50ep").model), "conditional_detr_r50")


@pytest.mark.parametrize(
    "name, blocks, dilation", [("r50_dc5_50ep", 6, 2), ("r101_50ep", 23, 1)], ids=["R50-DC5", "R101"]
)
def test_the_other_backbones(name, blocks, dilation):
    """The configs differ as their names say, and start from weights of the right depth."""
    cfg = load(f"conditional_detr_{name}")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert len(model.backbone.res4) == blocks
    assert model.backbone.res5[1].conv2.dilation == (dilation, dilation)
    assert cfg.train.init_checkpoint.endswith(f"R-{name[1:].split('_')[0]}.pkl")


def tiny(*overrides):
    torch.manual_seed(0)
    small = ["model.num_queries=20", "model.select_box_nums_for_evaluation=20"]
    return instantiate(load("conditional_detr_tiny", *small, *overrides).model)


@pytest.mark.parametrize("objects", [3, 0, 30])
def test_every_parameter_takes_part(check, small, objects):
    """Each parameter gets a gradient, else DDP hangs: with objects, without, with more objects than queries."""
    losses = check.gradients(tiny(), small.images((64, 96), (96, 64), objects=objects, num_classes=3))
    assert {"loss_class", "loss_giou_1"} <= losses.keys()


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_does_not_matter_at_inference(check, small, batch_first):
    """Images of different sizes give the same detections in a batch and alone."""
    layout = [f"model.transformer.{part}.batch_first={batch_first}" for part in ("encoder", "decoder")]
    model = tiny(*layout, "model.select_box_nums_for_evaluation=60").eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.bbox_embed.layers[-1].weight, std=0.3)
    check.same_detections(model, small.images((64, 96), (96, 64)))


def test_batch_first_is_the_same_model(small):
    """`batch_first` does not change the numbers."""
    flipped = tiny("model.transformer.encoder.batch_first=True", "model.transformer.decoder.batch_first=True").eval()
    model, batch = tiny().eval(), small.images((64, 96))
    with torch.no_grad():
        ours, theirs = (m(batch)[0]["instances"] for m in (model, flipped))
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


def test_bfloat16_autocast_trains(small):
    """Mixed precision: finite float32 losses, finite gradients."""
    model = tiny().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(small.images((64, 96), (96, 64), num_classes=3))
    sum(losses.values()).backward()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_intermediate_layers_can_be_left_out():
    """Without `return_intermediate` the decoder returns the output of its last layer."""
    options = {"embed_dim": 16, "num_heads": 2, "feedforward_dim": 8, "num_layers": 3}
    full = ConditionalDetrTransformerDecoder(**options)
    last = ConditionalDetrTransformerDecoder(**options, return_intermediate=False)
    last.load_state_dict(full.state_dict())
    tokens, embed = torch.randn(6, 2, 16), torch.randn(5, 2, 16)
    inputs = {"query": torch.zeros(5, 2, 16), "key": tokens, "value": tokens, "key_pos": tokens, "query_pos": embed}
    (states, points), (state, point) = full(**inputs), last(**inputs)
    assert states.shape == (3, 2, 5, 16) and points.shape == point.shape == (2, 5, 2)
    torch.testing.assert_close(state, states[-1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r50_50ep", "r50_dc5_50ep", "r101_50ep"])
def test_full_size(check, name):
    """The published models train one step and detect."""
    check.full_size(f"baselines/conditional_detr_{name}.py", (192, 256), (256, 160))
