import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from detrkit.config.load import get_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "projects/align_detr/configs"
CONTRACT = Path(__file__).parents[1] / "contract"
ROWS = sorted(path.stem for path in CONFIGS.glob("*.py"))
PUBLISHED = [row for row in ROWS if row.endswith("ep")]  # at full size, with a schedule in epochs of COCO
# The first row of each model: others differ in schedule or data alone.
DISTINCT = json.loads((ROOT / "tests/upstream/recorded.json").read_text(encoding="utf-8"))["models"]
RESNETS = [row for row in PUBLISHED if "_r50_" in row or "_r101_" in row]
MODELS = {  # config: recorded state dict
    "align_detr_r50_4scale_12ep": "align_detr_r50_4scale",
    "align_detr_r101_4scale_24ep": "align_detr_r101_4scale",
    "align_h_deformable_detr_r50_two_stage_12ep": "align_h_deformable_detr_r50_two_stage",
    "align_dab_detr_r50_50ep": "align_dab_detr_r50",
    "align_dab_detr_r50_dc5_50ep": "align_dab_detr_r50_dc5",
    "align_dab_detr_r101_50ep": "align_dab_detr_r101",
    "align_dab_detr_r101_dc5_50ep": "align_dab_detr_r101_dc5",
    "align_conditional_detr_r50_50ep": "conditional_detr_r50",
}


def load(name, *overrides):
    cfg = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    return LazyConfig.apply_overrides(cfg, ["train.device=cpu", *overrides])


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_is_the_published_one(name):
    """Protects checkpoints that move both ways: every key and shape of the full-size models."""
    recorded = json.loads((CONTRACT / f"state_dict_{MODELS[name]}.json").read_text())
    with torch.device("meta"):
        model = instantiate(load(name).model)
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert found == recorded["keys"]
    assert sum(p.numel() for p in model.parameters()) == recorded["parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == recorded["trainable"]


@pytest.mark.parametrize("name", [row for row in ROWS if row in DISTINCT])
def test_every_row_takes_the_papers_options_as_overrides(name):
    """Protects `model.criterion.alpha=...` and the depth of the backbone, one override away in every config."""
    cfg = load(
        name,
        "model.criterion.alpha=0.5",
        "model.criterion.k=3",
        "model.criterion.tau=3",
        "model.criterion.gamma=1.5",
        "model.criterion.loss_class_type=align_loss",
    )
    if name in RESNETS:
        cfg.model.backbone.stages.depth = 101
    with torch.device("meta"):
        model = instantiate(cfg.model)
    criterion = model.criterion
    assert (criterion.alpha, criterion.k, criterion.tau, criterion.gamma) == (0.5, 3, 3, 1.5)
    assert criterion.classification_loss.matched.__name__ == "align_loss"
    if name in RESNETS:
        assert len(model.backbone.res4) == 23


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedule_ends_where_training_ends(name):
    """Protects the published schedules: batch 16, and a learning rate that has dropped to a tenth by the end."""
    cfg = load(name)
    epochs = int(name.split("_")[-1].removesuffix("ep"))
    assert cfg.dataloader.train.total_batch_size == 16
    assert cfg.train.max_iter == epochs * 7500
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0.5) == pytest.approx(1) and schedule(1 - 1e-6) == pytest.approx(0.1)


def test_published_settings():
    """Protects the numbers of the paper and of DINO's 4-scale setting in the config that stands for them."""
    cfg = load("align_detr_r50_4scale_12ep")
    model, criterion, matcher = cfg.model, cfg.model.criterion, cfg.model.criterion.matcher
    assert (model.num_queries, model.dn_number, model.label_noise_ratio, model.box_noise_scale) == (900, 100, 0.5, 1.0)
    assert (criterion.k, criterion.tau, criterion.alpha, criterion.gamma) == (2, 1.5, 0.25, 2.0)
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (2, 5, 2)
    weights = instantiate(criterion.weight_dict)
    assert len(weights) == 3 * (6 + 1 + 6)
    assert {k: v for k, v in weights.items() if k.endswith("_enc") or k.endswith("_dn_0")} == {
        f"{name}{suffix}": weight
        for suffix in ("_enc", "_dn_0")
        for name, weight in {"loss_class": 1, "loss_bbox": 5, "loss_giou": 2}.items()
    }
    assert cfg.optimizer.lr == 1e-4 and cfg.optimizer.weight_decay == 1e-4
    assert cfg.train.clip_grad.params.max_norm == 0.1
    with torch.device("meta"):
        cfg.optimizer.params.model = instantiate(model)
    rates = {group["lr"] for group in instantiate(cfg.optimizer).param_groups}
    assert rates == {1e-4, 1e-5}


@pytest.mark.parametrize(
    "name, baseline, rates",
    [
        ("align_detr_tiny", "baselines/dino_tiny.py", (8e-4, 8e-4)),
        ("align_h_deformable_detr_tiny", "baselines/h_deformable_detr_tiny.py", (8e-4, 4e-4)),
        ("align_dab_detr_tiny", "baselines/dab_detr_tiny.py", (4e-4, 4e-4)),
        *(
            (f"align_detr_{row}", f"baselines/dino_{row}.py", (1e-4, 1e-4))
            for row in ("swin_large_384_5scale_36ep", "vitdet_large_4scale_50ep", "timm_4scale_12ep")
        ),
        *(
            (f"align_{row}", f"baselines/{row}.py", (2e-4, 2e-4))
            for row in ("h_deformable_detr_swin_tiny_two_stage_12ep", "h_deformable_detr_swin_large_two_stage_36ep")
        ),
        ("align_detr_demo", "baselines/dino_demo.py", (2.4e-3, 2.4e-3)),
        ("align_detr_bccd", "baselines/dino_bccd.py", (1.6e-3, 1.6e-3)),
        ("align_detr_lite0_4scale", "baselines/dino_lite0_4scale.py", (8e-4, 8e-4)),
        ("align_detr_lite0_bccd", "baselines/dino_lite0_bccd.py", (1.6e-3, 8e-4)),
        ("align_detr_lite0_neu_det", "baselines/dino_lite0_neu_det.py", (8e-4, 4e-4)),
    ],
)
def test_pairs_differ_in_the_supervision_alone(name, baseline, rates):
    """Protects the comparisons: only supervision and rate differ, so a gain comes from the supervision."""
    ours, theirs = load(name), get_config(baseline)
    assert (ours.optimizer.lr, theirs.optimizer.lr) == rates
    ours.optimizer.lr = theirs.optimizer.lr
    for cfg in (ours, theirs):
        cfg.train.device = cfg.train.output_dir = cfg.model.criterion = cfg.model._target_ = ""
    assert OmegaConf.to_container(ours, resolve=False) == OmegaConf.to_container(theirs, resolve=False)


def test_configs_share_no_state():
    """Protects a process that loads several configs: an R101 row must not leak into the R50 one."""
    assert load("align_detr_r101_4scale_12ep").model.backbone.stages.depth == 101
    assert load("align_detr_r50_4scale_12ep").model.backbone.stages.depth == 50


def test_the_documented_config_for_ones_own_data(tmp_path):
    """The printed config of five lines loads twice (some commands do that) and sets data and number of classes."""
    text = (ROOT / "docs/own_data.md").read_text()
    (lines,) = re.findall(r"```python\n(from detrkit\.datasets .*?)```", text, re.DOTALL)
    assert len(lines.splitlines()) == 5
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs/mine.py").write_text(lines)
    try:
        for _ in range(2):
            cfg = LazyConfig.load(str(tmp_path / "configs/mine.py"))
        assert cfg.dataloader.evaluator.dataset_name == "mine_val"
        assert instantiate(cfg.model.criterion).num_classes == 3
        with pytest.raises(FileNotFoundError, match="mine/train.json"):
            instantiate(cfg.dataloader.train.dataset)
    finally:
        for name in {"mine_train", "mine_val"} & set(DatasetCatalog.list()):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
