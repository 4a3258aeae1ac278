"""The sheets of what each branch looks at, of SD-DETR, Conditional DETR and a detector that cannot be shown so."""

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from PIL import Image

from align_detr._platform import EMBEDDED_ROOT
from detrkit.commands import visualize_attention as tool

ROOT = EMBEDDED_ROOT.parent
SD = ROOT / "projects/sd_detr/configs/sd_detr_tiny.py"
CONDITIONAL = EMBEDDED_ROOT.parent / "configs/baselines/conditional_detr_tiny.py"
DINO = EMBEDDED_ROOT.parent / "configs/baselines/dino_tiny.py"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(config)` draws the sheet of one picture; returns the exit status and the sheet's size."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "no_data"))
    Image.fromarray(np.full((60, 90, 3), 128, np.uint8)).save(tmp_path / "grey.png")

    def run(config, *inputs):
        cfg = LazyConfig.load(str(config))
        cfg.model.device = cfg.train.device = "cpu"
        torch.save({"model": instantiate(cfg.model).state_dict()}, tmp_path / "model.pth")
        options = ["--checkpoint", tmp_path / "model.pth", "--output", tmp_path / "out", "--top", 2]
        with pytest.raises(SystemExit) as stop:
            tool.main(
                ["--config-file", str(config), *map(str, options), "--input", str(tmp_path / "grey.png"), *inputs]
                + ["train.device=cpu", "dataloader.test.mapper.augmentation.0.short_edge_length=48"]
            )
        sheets = sorted((tmp_path / "out").glob("*.png"))
        return stop.value.code, Image.open(sheets[0]).size if sheets else None

    return run


def test_branches_are_side_by_side(run):
    """Two detections in rows; SD-DETR's two branches in columns, Conditional DETR's one."""
    status, (width, height) = run(SD)
    assert status == 0 and width > height
    status, (narrow, same) = run(CONDITIONAL)
    assert status == 0 and narrow < 0.6 * width and same == height


def test_what_cannot_be_shown_is_said(run, capsys):
    """A file that is not there is named; DINO's attention is to points alone."""
    assert run(SD, "nowhere.png")[0] == 1
    assert "nowhere.png" in capsys.readouterr().err
    assert run(DINO)[0] == 1
    assert "error: DINOTransformerDecoder has no attention to every place" in capsys.readouterr().err
