"""SD-DETR: switches, branches and points; with all switches off it is Conditional DETR."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from detrex.layers import get_sine_pos_embed

from detrkit.analysis.attention import attention_weights, capture_attention
from detrkit.config.load import get_config
from sd_detr.modeling import SDDetrTransformerDecoder, TaskQueries
from sd_detr.modeling.task_queries import sample

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "projects/sd_detr/configs"
DECODER = "model.transformer.decoder."
SPLIT_OFF, QUERIES_OFF = f"{DECODER}split_attention=False", f"{DECODER}task_queries=False"
ALIGN_OFF = "model.criterion.align=False"
ALL_OFF = (SPLIT_OFF, QUERIES_OFF, ALIGN_OFF)


def load(name, *overrides):
    return LazyConfig.apply_overrides(LazyConfig.load(str(CONFIGS / f"{name}.py")), ["train.device=cpu", *overrides])


def build(cfg):
    """Smaller still, on the CPU, with heads that do not start at zero."""
    torch.manual_seed(0)
    cfg.model.device = "cpu"
    cfg.model.transformer.encoder.num_layers = 1
    cfg.model.transformer.decoder.num_layers = 2
    for part in ("encoder", "decoder"):
        cfg.model.transformer[part].feedforward_dim = 32
    cfg.model.num_queries = 20
    cfg.model.select_box_nums_for_evaluation = 20
    model = instantiate(cfg.model)
    torch.nn.init.normal_(model.bbox_embed.layers[-1].weight, std=0.3)
    return model


def tiny(*overrides):
    return build(load("sd_detr_tiny", *overrides))


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


def step(model, batch):
    """Return the losses of one training step, and the outputs."""
    seen = []
    hook = model.criterion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(1)  # of dropout
    losses = model.train()(batch)
    hook.remove()
    return losses, seen[0]


def test_with_all_switches_off_it_is_conditional_detr():
    """The same keys in the same order, and the same outputs, losses and detections from the same weights."""
    conditional = build(get_config("baselines/conditional_detr_tiny.py"))
    model = tiny(*ALL_OFF)
    assert list(model.state_dict()) == list(conditional.state_dict())
    model.load_state_dict(conditional.state_dict())

    (losses, outputs), (expected_losses, expected) = (step(m, images()) for m in (model, conditional))
    assert losses.keys() == expected_losses.keys()
    for name, value in expected_losses.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-5)
    pairs = zip([outputs, *outputs["aux_outputs"]], [expected, *expected["aux_outputs"]], strict=True)
    for ours, theirs in pairs:
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)

    with torch.no_grad():
        ours, theirs = (m.eval()(images((48, 64)))[0]["instances"] for m in (model, conditional))
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "override, absent",
    [(SPLIT_OFF, ("box_layers", "box_query_scale")), (QUERIES_OFF, ("task_queries",)), (ALIGN_OFF, ())],
    ids=["split attention", "task queries", "alignment"],
)
def test_each_switch_turns_one_idea_off(override, absent):
    """One override each: a disabled part has no parameters, and the rest trains and detects."""
    full, model = tiny(), tiny(override)
    lost = [name for name in full.state_dict() if any(part in name for part in absent)]
    assert bool(lost) == bool(absent)
    without = {name for name in full.state_dict() if name not in lost}
    assert {name for name in model.state_dict() if "content_proj.1" not in name} == {
        name for name in without if "content_proj.1" not in name
    }
    losses, _ = step(model, images())
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        assert len(model.eval()(images((48, 64)))[0]["instances"]) == 20


def test_without_alignment_the_losses_are_conditional_detrs():
    """`align=False` changes only the supervision: focal loss, one query per object in every layer."""
    conditional = build(get_config("baselines/conditional_detr_tiny.py")).criterion
    model = tiny(ALIGN_OFF)
    _, outputs = step(model, images())
    targets = model.prepare_targets([x["instances"] for x in images()])
    raw, expected = model.criterion(outputs, targets), conditional(outputs, targets)
    assert raw.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(raw[name], value)
    aligned = tiny().criterion(outputs, targets)
    assert all(aligned[name] != value for name, value in expected.items() if "class" in name)


@pytest.mark.parametrize("exchange", ["mean", "concatenation"])
@pytest.mark.parametrize("objects", [3, 0, 30])
def test_every_parameter_takes_part(exchange, objects):
    """Each parameter gets a finite gradient, else DDP hangs: with objects, without, with more objects than queries."""
    model = tiny(f"{DECODER}exchange={exchange}")
    losses, _ = step(model, images(objects=objects))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_each_head_reads_its_branch():
    """In the last layer each head depends only on its branch; shared self-attention of earlier layers trains both."""
    model = tiny()
    decoder = model.transformer.decoder
    last = {"class": decoder.layers[-1].ffns[0], "box": decoder.box_layers[-1]["ffn"]}
    for output, own, other in (("pred_logits", "class", "box"), ("pred_boxes", "box", "class")):
        model.zero_grad()
        _, outputs = step(model, images())
        outputs[output].square().sum().backward()
        assert all(p.grad.any() for name, p in last[own].named_parameters() if name.endswith("weight"))
        assert all(p.grad is None or not p.grad.any() for p in last[other].parameters())
        assert decoder.box_layers[0]["cross_attn"].value_proj.weight.grad.any()
        assert decoder.layers[0].attentions[1].value_proj.weight.grad.any()


def test_bfloat16_autocast_trains():
    """Mixed precision: finite float32 losses, finite gradients."""
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = step(model, images())
    sum(losses.values()).backward()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def queries(num_tasks=2, embed_dim=32, num_points=8):
    torch.manual_seed(0)
    module = TaskQueries(embed_dim, num_tasks, num_points)
    mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    mask[1, :, 4:] = True
    memory, embed = torch.randn(35, 2, embed_dim), torch.randn(10, 2, embed_dim)
    reference = 0.3 + 0.4 * torch.rand(10, 2, 2)
    return module, (memory, embed, reference, mask)


def test_points_start_inside_the_region_and_learn_their_way():
    """Points start as one ring for both tasks; gradients reach them through content and position."""
    module, arguments = queries()
    content, position, points = module(*arguments)
    assert content.shape == position.shape == (2, 10, 2, 32) and points.shape == (2, 10, 2, 8, 2)
    reach = (points - arguments[2][None, :, :, None]).abs().amax((-1, -2))
    torch.testing.assert_close(points.mean(-2), arguments[2].expand(2, -1, -1, -1))
    torch.testing.assert_close(reach, torch.full_like(reach, 0.05))
    torch.testing.assert_close(points[0], points[1])
    for start in (content, position):
        module.zero_grad()
        start.square().sum().backward(retain_graph=True)
        assert module.point_head.layers[-1].weight.grad.any() and module.region_size.bias.grad.any()


def test_points_at_the_reference_point_give_conditional_detrs_position():
    """Regions of size zero give Conditional DETR's positions."""
    module, arguments = queries(num_tasks=1)
    torch.nn.init.constant_(module.region_size.bias, -100)
    expected = get_sine_pos_embed(arguments[2], 16)
    torch.testing.assert_close(module(*arguments).position[0], expected)


def test_padding_does_not_matter_to_samples():
    """Samples do not depend on the amount or the content of padding, up to the image's border."""
    small, points = torch.randn(1, 3, 4, 5), torch.rand(1, 50, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.5], [0.01, 0.99]])
    padded = torch.full((1, 3, 6, 9), 1e6)
    padded[..., :4, :5] = small
    alone, in_a_batch = (sample(x, points, torch.tensor([[5, 4]])) for x in (small, padded))
    assert alone.shape == (1, 50, 3)
    torch.testing.assert_close(in_a_batch, alone)
    center = sample(small, torch.tensor([[[0.5 / 5, 1.5 / 4]]]), torch.tensor([[5, 4]]))
    torch.testing.assert_close(center[0, 0], small[0, :, 1, 0])


@pytest.mark.parametrize(
    "override, message",
    [
        ("num_points=7", "embed_dim=256, num_points=7"),
        ("exchange=sum", "exchange='sum': choose one of mean, concatenation"),
        ("batch_first=True", "takes the queries first"),
    ],
)
def test_invalid_options_are_reported(override, message):
    """The message names the option."""
    with pytest.raises(ValueError, match=message):
        tiny(DECODER + override)


def test_attention_in_the_pictures_is_the_models():
    """The recorded weights, applied to the values, give the attention's own output; without padding in it."""
    model = tiny().eval()
    seen = {}

    def keep(module, args, kwargs, output):
        seen.update(args=args, kwargs=kwargs, output=output)

    attention = model.transformer.decoder.box_layers[-1]["cross_attn"]
    attention.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad(), capture_attention(model) as maps:
        model(images())
    assert maps.attention.keys() == maps.points.keys() == {"class", "box"}
    assert maps.points["box"].shape == (2, 20, 8, 2)
    torch.testing.assert_close(maps.attention["box"].sum((-1, -2)), torch.ones(2, 20))

    given = {"query": seen["args"][0], **seen["kwargs"]}
    weights = attention_weights(attention, given)
    values = attention.value_proj(given["value"]).transpose(0, 1).unflatten(-1, (8, -1)).transpose(1, 2)
    mixed = (weights @ values).transpose(1, 2).flatten(-2).transpose(0, 1)
    torch.testing.assert_close(given["query"] + attention.out_proj(mixed), seen["output"], rtol=1e-4, atol=1e-5)


def test_pictures_need_an_attention_to_everything():
    """DINO's attention is sparse, and a Linear layer has no decoder: both raise a ValueError."""
    dino = instantiate(get_config("baselines/dino_tiny.py").model.transformer.decoder)
    model = torch.nn.Module()
    model.transformer = torch.nn.Module()
    model.transformer.decoder = dino
    for broken in (model, torch.nn.Linear(1, 1)):
        with pytest.raises(ValueError, match="no attention to every place"), capture_attention(broken):
            pass


@pytest.mark.parametrize(
    "name, blocks, dilation", [("r50_50ep", 6, 1), ("r50_dc5_50ep", 6, 2), ("r101_50ep", 23, 1)]
)
def test_full_size_rows(name, blocks, dilation):
    """All keys of the published Conditional DETR exist, each config has its backbone and the published schedule."""
    cfg = load(f"sd_detr_{name}")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert len(model.backbone.res4) == blocks
    assert model.backbone.res5[1].conv2.dilation == (dilation, dilation)
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    contract = json.loads((ROOT / "tests/contract/state_dict_conditional_detr_r50.json").read_text())["keys"]
    assert {key: found[key] for key in contract if "backbone" not in key} == {
        key: shape for key, shape in contract.items() if "backbone" not in key
    }
    assert isinstance(model.transformer.decoder, SDDetrTransformerDecoder)
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size, cfg.model.num_queries) == (375000, 16, 300)
    assert cfg.train.init_checkpoint.endswith(f"R-{name[1:].split('_')[0]}.pkl")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r50_50ep", "r50_dc5_50ep", "r101_50ep"])
def test_full_size_step(name):
    """Full-size configs build, train one step and detect."""
    torch.manual_seed(0)
    model = instantiate(load(f"sd_detr_{name}").model)
    losses, _ = step(model, images((192, 256), (256, 160)))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        found = model.eval()(images((192, 256)))[0]["instances"]
    assert len(found) == 300 and found.scores.isfinite().all()
