"""Co-DINO: DINO at inference, heads and positive queries in training, and every switch."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf

from align_detr.modeling.losses import CLASSIFICATION_LOSSES, iou_and_giou
from co_detr.ops import BACKGROUND, IGNORED
from detrkit.analysis import predict_layers
from detrkit.config.load import get_config
from detrkit.training.training_parts import drop_training_parts, without_training_parts

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "projects/co_detr/configs"
HEADS = "model.collaboration.heads."
QUERY_LOSSES = ("loss_class", "loss_bbox", "loss_giou")


def load(name, *overrides):
    return LazyConfig.apply_overrides(LazyConfig.load(str(CONFIGS / f"{name}.py")), ["train.device=cpu", *overrides])


def build(cfg):
    """Smaller still, on the CPU, with heads that do not start at zero."""
    torch.manual_seed(0)
    cfg.model.device = "cpu"
    cfg.model.transformer.decoder.num_layers = 2
    for part in ("encoder", "decoder"):
        cfg.model.transformer[part].feedforward_dim = 32
        cfg.model.transformer[part].attn_dropout = cfg.model.transformer[part].ffn_dropout = 0.0
    cfg.model.num_queries = 20
    cfg.model.select_box_nums_for_evaluation = 20
    if cfg.model.get("collaboration") is not None and cfg.model.collaboration.heads.faster_rcnn is not None:
        cfg.model.collaboration.heads.faster_rcnn.hidden_dim = 16
    model = instantiate(cfg.model)
    for head in model.bbox_embed:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.1)
    return model


def tiny(*overrides):
    return build(load("co_dino_tiny", *overrides))


def images(*sizes, objects=3):
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in sizes or ((48, 64), (64, 40)):
        corner = torch.rand(objects, 2, generator=generator) * 20
        boxes = torch.cat([corner, corner + 8 + 10 * torch.rand(objects, 2, generator=generator)], dim=1)
        instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.arange(objects) % 3)
        image = torch.rand(3, height, width, generator=generator) * 255
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def losses_of(model, batch=None, seed=1):
    torch.manual_seed(seed)
    return model.train()(images() if batch is None else batch)


def test_at_inference_it_is_dino():
    """With the same weights Co-DINO detects as DINO and uses no other parameters, with or without its heads."""
    model = tiny()
    dino = build(get_config("baselines/dino_tiny.py"))
    weights = without_training_parts(model.state_dict())
    assert list(weights) == list(dino.state_dict()) and len(weights) < len(model.state_dict())
    dino.load_state_dict(weights)
    with torch.no_grad():
        expected = dino.eval()(images((48, 64)))[0]["instances"]
        for ours in (model.eval(), drop_training_parts(copy.deepcopy(model))):
            detections = ours(images((48, 64)))[0]["instances"]
            assert torch.equal(detections.scores, expected.scores)
            assert torch.equal(detections.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert list(drop_training_parts(model).state_dict()) == list(dino.state_dict())


def test_losses_of_dino_are_unchanged():
    """The heads add losses and leave DINO's losses unchanged (same supervision, same random numbers)."""
    model = tiny()
    plain = tiny("model.collaboration=null")
    plain.load_state_dict(without_training_parts(model.state_dict()))
    losses, expected = losses_of(model), losses_of(plain)
    assert expected.keys() < losses.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_everything_learns():
    """All losses exist at all layers, each parameter gets a gradient, the heads alone train encoder and backbone."""
    model = tiny()
    losses = losses_of(model)
    for suffix in ("atss", "atss_0", "faster_rcnn", "faster_rcnn_0"):
        assert {f"{name}_{suffix}" for name in QUERY_LOSSES} <= losses.keys()
    of_heads = {
        *(f"loss_atss_{name}" for name in ("class", "giou", "centerness")),
        *(f"loss_faster_rcnn_{name}" for name in ("rpn_class", "rpn_bbox", "class", "giou")),
    }
    assert of_heads <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward(retain_graph=True)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for names in (of_heads, [name for name in losses if name.startswith(QUERY_LOSSES) and "_atss" in name]):
        model.zero_grad()
        sum(losses[name] for name in names).backward(retain_graph=True)
        for part in (model.transformer.encoder.layers[0].ffns[0], model.backbone.stem.conv1):
            assert any(p.grad.any() for p in part.parameters())


@pytest.mark.parametrize("objects", [0, 40])
def test_no_parameter_is_left_out(objects):
    """Each parameter gets a gradient, else DDP hangs: with objects, without, and with more objects than queries."""
    model = tiny()
    losses = losses_of(model, images(objects=objects))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "override, on, queries",
    [
        (f"{HEADS}atss=null", {"faster_rcnn"}, {"faster_rcnn"}),
        (f"{HEADS}faster_rcnn=null", {"atss"}, {"atss"}),
        (f"{HEADS}number=1", {"atss"}, {"atss"}),
        (f"{HEADS}number=0", set(), set()),
        ("model.collaboration.lambda_queries=0", {"atss", "faster_rcnn"}, set()),
    ],
)
def test_switches(override, on, queries):
    """One override each: a head off, K, no positive queries. Disabled parts have no parameters and no losses."""
    model = tiny(override)
    losses = losses_of(model)
    assert {name for name in ("atss", "faster_rcnn") if f"loss_{name}_giou" in losses} == on
    assert {name for name in ("atss", "faster_rcnn") if f"loss_giou_{name}" in losses} == queries
    kept = {name.split(".")[2] for name in model.state_dict() if name.startswith("collaboration.heads.")}
    assert kept == on
    assert bool(on) == any(name.startswith("collaboration") for name in model.state_dict())
    if on:
        sum(losses.values()).backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_lambdas_are_factors():
    """Head losses scale with λ₂ and the number of decoder layers, losses of positive queries with λ₁."""
    model, other = tiny(), tiny("model.collaboration.lambda_heads=1", "model.collaboration.lambda_queries=0.5")
    assert model.collaboration.head_weight == 2 * 2
    other.load_state_dict(model.state_dict())
    losses, halved = losses_of(model), losses_of(other)
    for name, value in losses.items():
        changed = "_atss" in name or "_faster_rcnn" in name
        torch.testing.assert_close(halved[name], value / 2 if changed else value)


@pytest.mark.parametrize("kind, power", [("quality_focal_loss", 2), ("ia_bce_loss", 0), ("align_loss", 2)])
def test_positive_losses_are_the_loops(kind, power):
    """`loss_class_type` applies to positive queries.

    Each keeps its object, negatives are background, ignored queries have no loss. Sums are divided by the positives.
    """
    criterion = instantiate(load("co_dino_tiny", f"model.criterion.loss_class_type={kind}").model).criterion
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 4, 3), torch.rand(2, 4, 4) * 0.3 + 0.3
    targets = [
        {"labels": torch.tensor([2, 0]), "boxes": torch.rand(2, 4) * 0.3 + 0.3},
        {"labels": torch.tensor([1]), "boxes": torch.rand(1, 4) * 0.3 + 0.3},
    ]
    assigned = torch.tensor([[1, 1, 0, BACKGROUND], [0, BACKGROUND, IGNORED, IGNORED]])
    aux = {"pred_logits": logits.flip(1), "pred_boxes": boxes}
    outputs = {"pred_logits": logits, "pred_boxes": boxes, "aux_outputs": [aux]}
    losses = criterion.positive_losses(outputs, assigned, targets, "_x")
    assert losses.keys() == {f"{name}_x{layer}" for name in QUERY_LOSSES for layer in ("", "_0")}

    scores, expected = logits.sigmoid(), dict.fromkeys(QUERY_LOSSES, 0.0)
    for i in range(2):
        for q in range(4):
            index = int(assigned[i, q])
            if index == IGNORED:
                continue
            for c in range(3):
                s = scores[i, q, c]
                if index >= 0 and c == targets[i]["labels"][index]:
                    u, giou = iou_and_giou(boxes[i, q], targets[i]["boxes"][index])
                    y = u if kind == "quality_focal_loss" else (s**0.25 * u**0.75).clamp(min=0.01)
                    bce = -(y * s.log() + (1 - y) * (1 - s).log())
                    expected["loss_class"] += (y - s).abs() ** power * bce
                    expected["loss_bbox"] += (boxes[i, q] - targets[i]["boxes"][index]).abs().sum()
                    expected["loss_giou"] += 1 - giou
                else:
                    expected["loss_class"] -= s**2 * (1 - s).log()
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"{name}_x"], value / 4, rtol=5e-4, atol=1e-6)


def test_heads_queries_do_not_see_each_other():
    """Decoding all heads' queries together gives the same outputs as decoding each head's alone."""
    model = tiny().train()
    seen = []
    criterion, kept = model.criterion.positive_losses, {}
    model.criterion.positive_losses = lambda o, a, t, suffix: seen.append((suffix, o)) or criterion(o, a, t, suffix)
    hook = model.transformer.decoder.register_forward_pre_hook(lambda m, a, k: kept.update(k), with_kwargs=True)
    losses_of(model)
    hook.remove()
    assert [suffix for suffix, _ in seen] == ["_atss", "_faster_rcnn"]
    first = seen[0][1]["pred_logits"].shape[1]
    part = {name: kept[name][:, :first] for name in ("query", "reference_points")}
    with torch.no_grad():
        alone = model.transformer.decoder(**{**kept, **part, "attn_masks": [None, None]})
        logits = model.class_embed[1](alone[0][-1])
    torch.testing.assert_close(logits, seen[0][1]["pred_logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_autocast_trains():
    """Mixed precision: finite float32 losses, finite gradients."""
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model)
    sum(losses.values()).backward()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_the_reports_see_dino():
    """Predictions by layer equal inference, the heads do not run, and the model stays unchanged."""
    model = tiny()
    heads = model.collaboration
    heads.forward = None  # would raise
    batch = images((48, 64))
    predictions = predict_layers(model, batch)
    assert predictions.logits.shape == (2, 1, 20, 3) and model.collaboration is heads


def test_one_option_makes_it_co_align_detr():
    """Align-DETR's losses imply its matching (k = 2), other losses one-to-one; an explicit k overrides both."""
    for options, k in (
        ((), 1),
        (("loss_class_type=ia_bce_loss",), 2),
        (("loss_class_type=align_loss",), 2),
        (("loss_class_type=varifocal_loss",), 1),
        (("loss_class_type=ia_bce_loss", "k=3"), 3),
    ):
        cfg = load("co_dino_tiny", *(f"model.criterion.{option}" for option in options))
        assert instantiate(cfg.model.criterion).k == k
    ours, named = load("co_dino_tiny", "model.criterion.loss_class_type=ia_bce_loss"), load("co_align_detr_tiny")
    for cfg in (ours, named):
        cfg.train.output_dir = ""
    assert OmegaConf.to_container(ours, resolve=False) == OmegaConf.to_container(named, resolve=False)


@pytest.mark.parametrize(
    "override, message",
    [
        (f"{HEADS}number=3", r"heads.number=3: 2 heads are on \(atss, faster_rcnn\)"),
        ("model.collaboration.min_queries=0", "min_queries=0: both must be at least 1"),
        ("model.collaboration.lambda_heads=-1", "lambda_heads=-1"),
        ("model.criterion.loss_class_type=quality_focal", "loss_class_type='quality_focal': choose one of"),
    ],
)
def test_invalid_options_are_reported(override, message):
    """The message names the option."""
    with pytest.raises(ValueError, match=message):
        tiny(override)


def test_levels_and_strides_must_agree():
    """The first step raises an error with both numbers."""
    model = tiny("model.collaboration.strides=[8,16,32]")
    with pytest.raises(ValueError, match="strides=.* has 3 levels: expected 4, the encoder's 3 levels"):
        losses_of(model)


def test_published_settings():
    """The config has the settings of the published model."""
    cfg = load("co_dino_r50_5scale_12ep")
    with torch.device("meta"):
        cfg.model.device = "meta"
        model = instantiate(cfg.model)
    assert (model.num_queries, model.dn_number, model.label_noise_ratio, model.box_noise_scale) == (900, 100, 0.5, 1.0)
    assert model.select_box_nums_for_evaluation == 300 and model.transformer.num_feature_levels == 5
    criterion, weights = model.criterion, model.criterion.weight_dict
    assert (criterion.k, criterion.gamma) == (1, 2.0)
    assert criterion.classification_loss is CLASSIFICATION_LOSSES["quality_focal_loss"]
    assert [weights[name] for name in QUERY_LOSSES] == [1, 5, 2]
    parts = model.collaboration
    assert parts.strides == [4, 8, 16, 32, 64, 128] and (parts.head_weight, parts.query_weight) == (12, 1)
    assert (parts.max_positives, parts.min_queries) == (300, 9)
    atss, rcnn = parts.heads["atss"], parts.heads["faster_rcnn"]
    assert (atss.anchor_scale, atss.num_candidates) == (8, 9)
    assert (atss.class_weight, atss.giou_weight, atss.centerness_weight) == (1, 2, 1)
    rpn = rcnn.proposals
    assert rpn.scales == pytest.approx([4, 5.04, 6.35], abs=0.01) and rpn.ratios == [0.5, 1, 2]
    assert (rpn.positive_iou, rpn.negative_iou, rpn.num_samples) == (0.7, 0.3, 256)
    assert (rpn.num_before, rpn.num_after, rpn.nms_iou, rpn.class_weight, rpn.box_weight) == (4000, 1000, 0.7, 1, 1)
    assert (rcnn.num_samples, rcnn.positive_share, rcnn.positive_iou, rcnn.giou_weight) == (512, 0.25, 0.5, 10)
    assert rcnn.shared[1].weight.shape == (1024, 256 * 49) and rcnn.finest * 4 == 56
    assert parts.contents["atss"][0].weight.shape == (256, 512)
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size) == (90000, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["co_dino_r50_5scale_12ep", "co_dino_r50_4scale_12ep"])
def test_full_size_step(name):
    """Full-size configs build, train one step on a small photograph and detect."""
    torch.manual_seed(0)
    model = instantiate(load(name).model)
    batch = images((256, 320))
    losses = losses_of(model, batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        detections = model.eval()(batch)[0]["instances"]
    assert len(detections) == 300 and detections.scores.isfinite().all()
