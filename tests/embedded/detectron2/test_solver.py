"""Learning-rate schedules compared with recorded numbers, parameter groups with a table."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "common"


@pytest.mark.parametrize("name", ["1x", "12ep", "24ep", "36ep", "50ep", "12ep_warmup"])
def test_coco_schedules_match_the_recorded_ones(golden, name):
    """The multipliers equal the published ones."""
    case = golden(f"lr_multiplier_{name}")
    schedule = instantiate(LazyConfig.load(str(CONFIGS / "coco_schedule.py"))[f"lr_multiplier_{name}"])
    values = torch.tensor([schedule(where) for where in case.input["where"].tolist()], dtype=torch.float64)
    torch.testing.assert_close(values, case.output["multiplier"].double(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rescale", [False, True])
def test_linear_warmup_rises_to_the_schedule_and_then_follows_it(rescale):
    """The warmup ends without a jump; after it the schedule is unchanged."""
    cosine = CosineParamScheduler(1.0, 0.0)
    warmed = WarmupParamScheduler(cosine, warmup_factor=0.1, warmup_length=0.25, rescale_interval=rescale)
    joint = cosine(0.0 if rescale else 0.25)
    assert warmed(0.0) == pytest.approx(0.1)
    assert warmed(0.125) == pytest.approx((0.1 + joint) / 2)
    assert warmed(0.25 + 1e-5) == pytest.approx(joint, abs=1e-4)
    assert warmed(0.7) == pytest.approx(cosine(0.6 if rescale else 0.7))


def test_constant_warmup_and_unknown_methods():
    """An unknown method is an error."""
    cosine = CosineParamScheduler(1.0, 0.0)
    assert WarmupParamScheduler(cosine, 0.1, 0.25, "constant")(0.2) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="exponential"):
        WarmupParamScheduler(cosine, 0.1, 0.25, "exponential")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 4)
        self.again = self.head
        self.norm = nn.LayerNorm(4)
        self.query = nn.Embedding(2, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def by_name(model, groups):
    """Return {parameter name: options of its group}; fail if a parameter is in two groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    options = {}
    for group in groups:
        rest = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            assert names[parameter] not in options
            options[names[parameter]] = rest
    return options


def test_every_parameter_gets_the_options_of_its_kind():
    """Backbone, norms and biases get their options; shared parameters occur once, frozen ones do not occur."""
    model = Net()
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=0.5,
        weight_decay_norm=0.0,
        weight_decay_bias=0.25,
        lr_factor_func=lambda name: 0.1 if "backbone" in name else 1,
        overrides={"in_proj": {"lr": 9.0}},
    )
    assert by_name(model, groups) == {
        "backbone.0.weight": {"lr": 0.1, "weight_decay": 0.5},
        "backbone.0.bias": {"lr": 0.1, "weight_decay": 0.25},
        "backbone.1.weight": {"lr": 0.1, "weight_decay": 0.0},
        "backbone.1.bias": {"lr": 0.1, "weight_decay": 0.25},
        "head.weight": {"lr": 1.0, "weight_decay": 0.5},
        "head.bias": {"lr": 1.0, "weight_decay": 0.25},
        "norm.weight": {"lr": 1.0, "weight_decay": 0.0},
        "norm.bias": {"lr": 1.0, "weight_decay": 0.25},
        "query.weight": {"lr": 1.0, "weight_decay": 0.5},
    }
    assert len(groups) == 6, "equal options share a group: an optimizer steps group by group"


def test_options_left_out_are_the_optimizers_own():
    """Without arguments there is one group without options, and bias_lr_factor and overrides reach it by name."""
    model = Net()
    (group,) = get_default_optimizer_params(model)
    assert set(group) == {"params"}
    options = by_name(model, get_default_optimizer_params(model, base_lr=1.0, bias_lr_factor=2.0))
    assert {name for name, value in options.items() if value["lr"] == 2.0} == {n for n in options if "bias" in n}
    options = by_name(model, get_default_optimizer_params(model, overrides={"bias": {"momentum": 0.5}}))
    assert options["norm.bias"] == {"momentum": 0.5} and options["norm.weight"] == {}


@pytest.mark.parametrize(
    "options",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 1.0},
        {"weight_decay_bias": 0.1, "overrides": {"bias": {"weight_decay": 0.2}}},
    ],
)
def test_contradictory_options_are_refused(options):
    """A factor without a rate, or two rules for one parameter, are errors."""
    with pytest.raises(ValueError):
        get_default_optimizer_params(Net(), **options)
