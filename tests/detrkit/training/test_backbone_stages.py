"""Frozen stages and batch norms, rates by depth, and rare classes, on every backbone that configs have."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase
from torch import nn

from detrkit.config.load import load_config
from detrkit.training.backbone_stages import (
    FrozenBatchNorms,
    LayerDecay,
    backbone_stages,
    freeze_backbone,
    frozen_batch_norms,
)
from detrkit.training.builders import build_optimizer
from detrkit.training.rare_classes import repeat_factors, systematic_sample
from detrkit.training.stream import ResumableLoader

ROOT = Path(__file__).resolve().parents[3]
NAMES = {  # of parameters as backbones have them, and their stages
    "resnet": {"stem.conv1.weight": 0, "res2.0.conv1.weight": 1, "res2.1.conv1.weight": 1, "res5.2.conv3.weight": 2},
    "swin": {
        "patch_embed.proj.weight": 0,
        "layers.0.blocks.1.norm1.bias": 1,
        "layers.3.blocks.0.w": 2,
        "norm2.bias": 2,
    },
    "vit": {"net.pos_embed": 0, "net.patch_embed.w": 0, "net.blocks.0.w": 1, "net.blocks.11.w": 2, "simfp_2.0.w": 2},
    "timm_resnet": {"timm_model.conv1.weight": 0, "timm_model.layer1.0.w": 1, "timm_model.layer4.0.w": 2},
    "timm_efficientnet": {"timm_model.conv_stem.w": 0, "timm_model.bn1.w": 0, "timm_model.blocks.0.0.w": 1},
    "timm_convnext": {"timm_model.stem_0.w": 0, "timm_model.stages_0.blocks.2.w": 1, "timm_model.stages_3.x": 2},
}


@pytest.mark.parametrize("backbone", NAMES)
def test_stages_by_name(backbone):
    assert backbone_stages(NAMES[backbone]) == NAMES[backbone]


def tiny(*overrides):
    return load_config("dino_tiny", ["train.device=cpu", *overrides])


def test_frozen_stages_do_not_train():
    """Parameters and statistics of the first stages stay, those after them move; the optimizer has only these."""
    cfg = tiny("train.freeze.stages=2")
    model = instantiate(cfg.model)
    freeze_backbone(cfg, model)
    frozen = [name for name, p in model.backbone.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith(("stem", "res2")) for name in frozen)
    assert {name.split(".")[0] for name, p in model.backbone.named_parameters() if p.requires_grad} >= {"res3"}
    in_optimizer = {id(p) for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in model.parameters() if p.requires_grad}
    kept = {id(norm) for norm in frozen_batch_norms(cfg, model)}
    norms = {name: module for name, module in model.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms and {name for name, norm in norms.items() if id(norm) in kept} == {
        name for name in norms if name.startswith(("stem", "res2"))
    }


def test_frozen_batch_norms_keep_their_statistics():
    """Also after `train()`, which the start of training and the end of an evaluation call."""
    cfg = tiny("train.freeze.batch_norm=True")
    model = instantiate(cfg.model)
    freeze_backbone(cfg, model)
    norms = frozen_batch_norms(cfg, model)
    hook = FrozenBatchNorms(norms)
    assert isinstance(hook, HookBase) and len(norms) > 4
    before = [norm.running_mean.clone() for norm in norms]
    model.train()
    hook.before_step()
    model.backbone(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


def test_too_many_stages_is_an_error():
    cfg = tiny("train.freeze.stages=9")
    with pytest.raises(ValueError, match="train.freeze.stages=9, but the backbone has . stages"):
        freeze_backbone(cfg, instantiate(cfg.model))
    with pytest.raises(ValueError, match="has no backbone"):
        freeze_backbone(cfg, nn.Linear(1, 1))


def test_rates_by_depth():
    """Each stage has the rate of the next one times the decay, and what is not of the backbone its own."""
    factors = LayerDecay(["stem.w", "res2.w", "res3.w"], 0.5, lambda name: 0.1 if "backbone" in name else 1)
    assert factors("backbone.stem.w") == pytest.approx(0.025) and factors("backbone.res3.w") == pytest.approx(0.1)
    assert factors("class_embed.weight") == 1
    rates = {}
    for decay in (1.0, 0.5):
        cfg = tiny(f"train.layer_decay={decay}")
        model = instantiate(cfg.model)
        optimizer = build_optimizer(cfg, model)
        rates[decay] = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        rates[decay] = {name: rates[decay][id(p)] for name, p in model.named_parameters() if p.requires_grad}
    stages = backbone_stages(name for name, _ in model.backbone.named_parameters())
    for name, rate in rates[0.5].items():
        steps = max(stages.values()) - stages[name.removeprefix("backbone.")] if name.startswith("backbone.") else 0
        assert rate == pytest.approx(rates[1.0][name] * 0.5**steps)


def image(*labels):
    return {"annotations": [{"category_id": label} for label in labels]}


def test_repeat_factors_by_hand():
    """Class 1 is in one image of four: sqrt(0.5 / 0.25). Class 0 is in three, more often than the threshold."""
    factors = repeat_factors([image(0), image(0, 0), image(0, 1), image()], 0.5)
    assert factors == [1, 1, pytest.approx(2**0.5), 1]


def test_images_come_as_often_as_their_factor():
    """In each epoch floor or ceil of it, and on average the factor itself."""
    factors = [1.0, 2.5, 1.0, 3.7, 1.0, 0.8]
    total = Counter()
    for epoch in range(1000):
        counts = Counter(systematic_sample(factors, (epoch + 0.5) / 1000).tolist())
        assert sum(counts.values()) == 10 and all(abs(counts[i] - f) < 1 for i, f in enumerate(factors))
        total += counts
    assert all(total[i] / 1000 == pytest.approx(f, abs=0.01) for i, f in enumerate(factors))


def test_the_stream_repeats_and_resumes():
    """An epoch is as long as the sum of the factors, differs from the next one, and resumes exactly."""

    def build(stream, collate):
        return (collate([example]) for example in stream)

    def loader():
        return ResumableLoader([{"n": n} for n in range(4)], None, build, factors=[1, 1, 1, 3.0])

    first = loader()
    iterator = iter(first)
    numbers = [next(iterator)[0]["n"] for _ in range(4)]
    state = first.state_dict()
    numbers += [next(iterator)[0]["n"] for _ in range(8)]
    assert Counter(numbers[:6]) == Counter(numbers[6:]) == {0: 1, 1: 1, 2: 1, 3: 3}
    second = loader()
    assert second.load_state_dicts([state]) == ""
    rest = iter(second)
    assert [next(rest)[0]["n"] for _ in range(8)] == numbers[4:]


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
    """All keys at once, on two iterations."""
    words = ["train.max_iter=2", "train.eval_period=0", "train.report.enabled=False", "train.accumulate=2"]
    words += ["train.freeze.stages=1", "train.freeze.batch_norm=True", "train.layer_decay=0.8"]
    words += ["train.repeat_threshold=0.9", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects"), "OMP_NUM_THREADS": "1"}
    for call in (["make-data", "--synthetic", "--train", "8", "--val", "2"], ["train", "dino_tiny", *words]):
        command = [sys.executable, "-m", "align_detr", *call]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
    assert "Rare classes: " in next(tmp_path.glob("output/*/log.txt")).read_text()
