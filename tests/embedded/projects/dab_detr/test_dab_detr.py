"""The DAB-DETR detector: recorded numbers, frozen anchors, padding, published state dicts."""

import copy
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, Instances
from detrex.layers import PositionEmbeddingSine
from detrex.modeling import HungarianMatcher, SetCriterion
from projects.dab_detr.modeling import (
    DABDETR,
    DabDetrTransformer,
    DabDetrTransformerDecoder,
    DabDetrTransformerEncoder,
)
from torch import nn

ROOT = Path(__file__).resolve().parents[4]
CONFIGS = ROOT / "configs/baselines"


def recorded_model(case, backbone) -> DABDETR:
    """The small model of a recorded case, with learned centres: the published model does not freeze them in effect."""
    config = case.config
    encoder = DabDetrTransformerEncoder(**config["encoder"])
    decoder = DabDetrTransformerDecoder(**config["decoder"])
    model = DABDETR(
        backbone=backbone(config["backbone"]),
        in_features=["res5"],
        in_channels=config["backbone"]["stage_out"][-1],
        position_embedding=PositionEmbeddingSine(**config["position_embedding"]),
        transformer=DabDetrTransformer(encoder, decoder),
        embed_dim=config["encoder"]["embed_dim"],
        num_classes=config["num_classes"],
        num_queries=config["num_queries"],
        criterion=SetCriterion(config["num_classes"], HungarianMatcher(**config["matcher"]), config["weight_dict"]),
        freeze_anchor_box_centers=False,
        select_box_nums_for_evaluation=config["select_box_nums_for_evaluation"],
        device="cpu",
    )
    model.load_state_dict(case.state, strict=True)
    return model


def recorded_inputs(case) -> list[dict]:
    return [
        {
            "image": image["image"],
            "height": int(image["height"]),
            "width": int(image["width"]),
            "instances": Instances(
                tuple(image["image"].shape[1:]), gt_boxes=Boxes(image["gt_boxes"]), gt_classes=image["gt_classes"]
            ),
        }
        for image in case.input
    ]


@pytest.mark.parametrize("name", ["model_dab_detr", "model_dab_detr_dc5"])
def test_training_step_matches_recording(golden, small, name):
    """Raw outputs, targets, weighted losses and the gradient of every parameter, two images of different sizes."""
    case = golden(name)
    model = recorded_model(case, small.backbone).train()
    seen = {}
    model.criterion.register_forward_pre_hook(lambda _, args: seen.update(outputs=args[0], targets=args[1]))
    losses = model(recorded_inputs(case))

    target = case.output["train_outputs"]
    pairs = [(seen["outputs"], target), *zip(seen["outputs"]["aux_outputs"], target["aux_outputs"], strict=True)]
    for ours, theirs in pairs:
        for key in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=2e-4, atol=1e-6)
    for ours, theirs in zip(seen["targets"], case.output["targets"], strict=True):
        torch.testing.assert_close(ours["boxes"], theirs["boxes"])
        assert ours["labels"].tolist() == theirs["labels"].tolist()

    assert set(losses) == set(case.output["losses"])
    for key, value in losses.items():
        torch.testing.assert_close(value, case.output["losses"][key], rtol=5e-4, atol=1e-6)

    sum(losses.values()).backward()
    norms = {key: p.grad.norm() for key, p in model.named_parameters() if p.grad is not None}
    assert set(norms) == set(case.output["grad_norms"])
    for key, value in norms.items():
        # Gradients that are zero but for rounding have norms around 1e-10.
        torch.testing.assert_close(value, case.output["grad_norms"][key], rtol=5e-3, atol=1e-8)


@pytest.mark.parametrize("name", ["model_dab_detr", "model_dab_detr_dc5"])
def test_detections_match_recording_alone_and_in_a_batch(golden, small, check, name):
    """Padding has no influence: the recorded detections of single images equal those of a batch of both."""
    case = golden(name)
    check.recorded_detections(recorded_model(case, small.backbone), case)


class Patches(Backbone):
    """A backbone of one convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, x):
        return {"patches": self.conv(x)}

    def output_shape(self):
        return {"patches": ShapeSpec(channels=8, stride=8)}


def small_model(embed_dim=32, num_layers=2, num_patterns=0, batch_first=False, seed=0, **kwargs) -> DABDETR:
    torch.manual_seed(seed)
    shared = {"embed_dim": embed_dim, "num_heads": 4, "feedforward_dim": 32, "attn_dropout": 0.0, "ffn_dropout": 0.0}
    encoder = DabDetrTransformerEncoder(**shared, num_layers=1, batch_first=batch_first)
    decoder = DabDetrTransformerDecoder(**shared, num_layers=num_layers, batch_first=batch_first)
    matcher = HungarianMatcher(2, 5, 2)
    return DABDETR(
        backbone=Patches(),
        in_features=["patches"],
        in_channels=8,
        position_embedding=PositionEmbeddingSine(embed_dim // 2, temperature=20, normalize=True),
        transformer=DabDetrTransformer(encoder, decoder, num_patterns),
        embed_dim=embed_dim,
        num_classes=3,
        num_queries=10,
        criterion=SetCriterion(3, matcher, weight_dict={"loss_bbox": 5.0}),
        device="cpu",
        **kwargs,
    )


def small_inputs(sizes=((40, 56), (64, 32)), objects=(2, 1)) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for (height, width), count in zip(sizes, objects, strict=True):
        corner = torch.rand(count, 2, generator=generator) * 15
        boxes = torch.cat((corner, corner + 8), dim=1)
        instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.arange(count))
        inputs.append({"image": torch.rand(3, height, width, generator=generator) * 255, "instances": instances})
    return inputs


def step(model: DABDETR, objects=(2, 1)) -> None:
    """Take one step with a large weight decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    sum(model.train()(small_inputs(objects=objects)).values()).backward()
    optimizer.step()


@pytest.mark.parametrize("duplicate", [lambda model: model, copy.deepcopy], ids=["itself", "a copy"])
def test_frozen_centers_stay(duplicate):
    """Neither gradients nor weight decay move the centres; widths and heights learn."""
    model = duplicate(small_model())
    before = model.state_dict()["anchor_box_embed.weight"].clone()
    step(model)
    step(model)
    after = model.state_dict()["anchor_box_embed.weight"]
    assert torch.equal(after[:, :2], before[:, :2])
    assert (after[:, 2:] != before[:, 2:]).all()
    assert not model.anchor_box_embed.weight.grad[:, :2].any()


def test_frozen_centers_come_from_the_checkpoint():
    """Loaded centres replace the initial ones, and then stay."""
    model, donor = small_model(seed=1), small_model(seed=2)
    model.load_state_dict(donor.state_dict())
    step(model)
    after, loaded = (m.state_dict()["anchor_box_embed.weight"] for m in (model, donor))
    assert torch.equal(after[:, :2], loaded[:, :2])
    assert torch.equal(model.anchor_box_embed()[:, :2], loaded[:, :2])


def test_frozen_centers_cover_the_image():
    """Frozen centres never move, so they must cover the image."""
    torch.manual_seed(0)
    centers = small_model(seed=3).anchor_box_embed.weight[:, :2].sigmoid()
    assert 0.3 < centers.mean() < 0.7 and centers.min() < 0.25 and centers.max() > 0.75


def test_centers_learn_when_not_frozen():
    """With `freeze_anchor_box_centers=False` the centres learn."""
    model = small_model(freeze_anchor_box_centers=False)
    before = model.anchor_box_embed.weight.detach().clone()
    step(model)
    assert (model.anchor_box_embed.weight != before).all()


@pytest.mark.parametrize("objects", [(2, 1), (0, 3), (0, 0)])
def test_every_parameter_takes_part(objects):
    """Each parameter gets a gradient, else DDP hangs; also for images without objects."""
    model = small_model().train()
    sum(model(small_inputs(objects=objects)).values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_losses_are_weighted_and_unknown_ones_kept():
    """`weight_dict` scales its losses; losses without an entry are unchanged."""
    model = small_model().train()
    raw = {}
    model.criterion.register_forward_hook(
        lambda _, args, out: raw.update({key: value.detach().clone() for key, value in out.items()})
    )
    losses = model(small_inputs())
    torch.testing.assert_close(losses["loss_bbox"], 5 * raw["loss_bbox"])
    torch.testing.assert_close(losses["loss_giou_0"], raw["loss_giou_0"])


@pytest.mark.parametrize("num_patterns", [0, 3])
@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_does_not_matter_at_inference(check, num_patterns, batch_first):
    """Images of different sizes give the same detections in a batch and alone; three patterns triple the queries."""
    limit = 10 * 3 * max(1, num_patterns)
    model = small_model(num_patterns=num_patterns, batch_first=batch_first, select_box_nums_for_evaluation=limit).eval()
    inputs = small_inputs()
    with torch.no_grad():
        together = [result["instances"] for result in model(inputs)]
        alone = [model([image])[0]["instances"] for image in inputs]
    for batched, single in zip(together, alone, strict=True):
        assert len(single) == limit
        check.detected(batched, single.scores, single.pred_boxes.tensor, single.pred_classes)


def test_batch_first_is_the_same_model():
    """`batch_first` does not change the numbers."""
    first, second = small_model(batch_first=False), small_model(batch_first=True)
    for key, value in first(small_inputs()).items():
        torch.testing.assert_close(second(small_inputs())[key], value, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_trains():
    """Mixed precision: finite float32 losses, finite gradients."""
    model = small_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(small_inputs())
    sum(losses.values()).backward()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_intermediate_layers_can_be_left_out():
    """Without `return_intermediate` the decoder returns the output of its last layer."""
    options = {"embed_dim": 16, "num_heads": 2, "feedforward_dim": 8, "num_layers": 3}
    full = DabDetrTransformerDecoder(**options)
    last = DabDetrTransformerDecoder(**options, return_intermediate=False)
    last.load_state_dict(full.state_dict())
    tokens = torch.randn(6, 2, 16)
    inputs = {"query": torch.zeros(5, 2, 16), "key": tokens, "value": tokens, "key_pos": tokens}
    anchors = torch.randn(5, 2, 4)
    (states, boxes), (state, box) = (d(**inputs, anchor_box_embed=anchors) for d in (full, last))
    assert states.shape == (3, 5, 2, 16) and boxes.shape == (3, 5, 2, 4)
    torch.testing.assert_close(state, states[-1:])
    torch.testing.assert_close(box, boxes[-1:])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.in_channels=128", "in_channels=128, but the backbone's res4 has 256"),
        ("model.transformer.encoder.embed_dim=128", "embed_dim=256 differs from the transformer's embed_dim=128"),
        ("model.transformer.decoder.embed_dim=121", "must be even"),
        ("model.embed_dim=128", "num_pos_feats to half of embed_dim"),
    ],
)
def test_widths_that_do_not_fit_are_named(override, message):
    """An inconsistent override of one width names both widths, instead of 'size of tensor a must match'."""
    config = LazyConfig.apply_overrides(LazyConfig.load(str(CONFIGS / "dab_detr_tiny.py")), [override])
    with pytest.raises(ValueError, match=message):
        instantiate(config.model)(small_inputs())


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("dc5", ["", "_dc5"])
def test_configs_build_the_published_models(depth, dc5):
    """Keys and shapes of the state dict, and the number of parameters, at full size."""
    contract = json.loads((ROOT / f"tests/contract/state_dict_align_dab_detr_r{depth}{dc5}.json").read_text())
    config = LazyConfig.load(str(CONFIGS / f"dab_detr_r50{dc5}_50ep.py"))
    config.model.device = "cpu"
    config.model.backbone.stages.depth = depth
    with torch.device("meta"):
        model = instantiate(config.model)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == contract["keys"]
    assert sum(p.numel() for p in model.parameters()) == contract["parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == contract["trainable"]


def test_loss_weights_follow_the_number_of_layers():
    """One override changes the decoder and the weights of its losses."""
    config = LazyConfig.load(str(CONFIGS / "dab_detr_tiny.py"))
    config.model.transformer.decoder.num_layers = 4
    config.model.device = "cpu"
    model = instantiate(config.model).train()
    losses = model(small_inputs())
    assert set(losses) == set(model.criterion.weight_dict) and "loss_giou_2" in losses


def test_tiny_config_learns():
    """A few steps on one batch bring the loss well below its start."""
    torch.manual_seed(0)
    config = LazyConfig.load(str(CONFIGS / "dab_detr_tiny.py"))
    config.model.device = "cpu"
    model = instantiate(config.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4)
    totals = []
    for _ in range(8):
        loss = sum(model(small_inputs(sizes=((64, 64), (64, 48)))).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.7 * totals[0]
