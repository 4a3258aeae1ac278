"""Counts of parameters, multiply-adds and activations, against sums done by hand."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from detrex.layers import MultiScaleDeformableAttention
from torch import nn

from detrkit.analysis import complexity
from detrkit.commands import model as tool

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "projects" / "align_detr" / "configs"



C, H, P = 32, 4, 3  # channels, heads, points


class Small(nn.Module):
    """A convolution, a linear layer in each of its places, attention and deformable attention over two levels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, C, 4, stride=4)
        self.attention = nn.Linear(C, C)
        self.deformable = MultiScaleDeformableAttention(C, H, num_levels=2, num_points=P, batch_first=True)

    def forward(self, batched_inputs):
        fine = self.conv(batched_inputs[0]["image"][None])
        coarse = fine[..., ::2, ::2]
        shapes = torch.tensor([[8, 16], [4, 8]])
        tokens = torch.cat([fine.flatten(2), coarse.flatten(2)], dim=2).transpose(1, 2)
        query = self.attention(tokens[:, :10])
        query = F.scaled_dot_product_attention(query, tokens, tokens)
        x = self.deformable(
            query,
            value=tokens,
            reference_points=torch.full((1, 10, 2, 2), 0.5),
            spatial_shapes=shapes,
            level_start_index=torch.tensor([0, 128]),
        )
        instances = Instances((32, 64), pred_boxes=Boxes(x[0, :, :4]), scores=x[0, :, 0], pred_classes=x[0, :, 1])
        return [{"instances": instances}]


def test_every_operator_is_counted_by_its_formula():
    """32×64 pixels: 8·16 cells and 4·8 cells are 160 tokens, of which 10 are queries."""
    counts, uncounted = complexity.count_operators(Small().eval(), (64, 32))
    tokens, queries = 160, 10
    assert counts[""]["conv"] == counts["conv"]["conv"] == 8 * 16 * C * 3 * 4 * 4
    offsets_and_weights = queries * C * H * 2 * P * 3
    assert counts["deformable"]["linear"] == offsets_and_weights + (tokens + queries) * C * C
    assert counts["deformable"]["deformable attention"] == 5 * queries * 2 * P * C
    assert counts["attention"]["linear"] == queries * C * C
    assert counts[""]["attention"] == queries * tokens * (C + C)
    assert counts["conv"][complexity.ACTIVATIONS] == 8 * 16 * C
    assert not [name for name in uncounted if "deform" in name or "attention" in name or "conv" in name]


def run(capsys, *arguments):
    tool.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def figures(table):
    """The rows of a table by their first column, as numbers."""
    rows = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())
    rows = (row for row in rows if len(row) > 1 and row[1][0].isdigit())
    return {name: [float(re.sub(r"[^\d.]", "", cell)) for cell in cells] for name, *cells in rows}


@pytest.mark.parametrize(
    "config", ["align_detr_tiny.py", "align_h_deformable_detr_tiny.py", "align_dab_detr_tiny.py"]
)
def test_the_tables_of_the_tiny_detectors_add_up(config, capsys):
    """Parameters are the model's; modules of one level sum to the whole, but for what the model itself computes."""
    path = CONFIGS / config
    rows = figures(run(capsys, "--config-file", path, "--size", 128, 96, "--depth", 1))
    cfg = LazyConfig.load(str(path))
    cfg.train.device = "cpu"
    model = instantiate(cfg.model)
    parameters, trained, flops, share, activations = rows[type(model).__name__]
    assert parameters == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=1e-3)
    assert trained == pytest.approx(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, abs=1e-3)
    assert share == 100 and activations > 0 and flops == rows["all"][0]
    parts = [rows[name] for name, _ in model.named_children() if name in rows]
    assert sum(part[2] for part in parts) == pytest.approx(flops, abs=0.01)
    operators = list(rows)[list(rows).index("all") - 3 : list(rows).index("all")]
    assert len(operators) == 3 and flops > rows["linear"][0] + rows["conv"][0] > 0.8 * flops


def test_larger_images_cost_more(capsys):
    """The size is width, then height."""
    config = CONFIGS / "align_detr_tiny.py"
    tables = {
        size: figures(run(capsys, "--config-file", config, "--size", *size, "--tasks", "flop", "--depth", 1))
        for size in ((128, 128), (256, 128))
    }
    small, large = (table["conv"][0] for table in tables.values())
    assert large == pytest.approx(2 * small, rel=0.02)


def test_parameters_and_structure_need_no_inference(capsys, monkeypatch):
    """Of the largest model they come at once."""
    monkeypatch.setattr(complexity, "count_operators", None)
    output = run(
        capsys, "--config-file", CONFIGS / "align_detr_r50_4scale_12ep.py", "--tasks", "parameter", "structure"
    )
    assert figures(output)["DINO"][0] == pytest.approx(47.65, abs=5e-3)
    assert "ChannelMapper" in output and "FLOPs" not in output


@pytest.mark.slow
def test_the_published_flops_of_dino(capsys):
    """DINO's paper (arXiv 2203.03605, table 1) has 279 GFLOPs and 47 M parameters for R50 with four scales."""
    output = run(capsys, "--config-file", CONFIGS / "align_detr_r50_4scale_12ep.py", "--depth", 1)
    assert figures(output)["all"][0] == pytest.approx(279, rel=0.01)


def test_errors(capsys):
    """One line each."""

    def refusal(*arguments):
        with pytest.raises(SystemExit) as stop:
            run(capsys, *arguments)
        assert stop.value.code
        return capsys.readouterr().err

    config = CONFIGS / "align_detr_tiny.py"
    assert "no such config" in refusal("--config-file", "nowhere.py")
    assert "--size 0 800" in refusal("--config-file", config, "--size", 0, 800)
    assert "there is no flops" in refusal("--config-file", config, "--tasks", "flops")
    assert "did you mean model.num_queries?" in refusal("--config-file", config, "model.num_querys=5")
    assert "positions" in refusal("--config-file", config, "--size", 32, 32)
