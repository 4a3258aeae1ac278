"""SD-DETR on the command line: train, resume, evaluate, export, analyse, on the synthetic data."""

import json

import pytest
import torch

CONFIG = "projects/sd_detr/configs/sd_detr_tiny.py"
SMALL = [
    "train.device=cpu",
    "train.max_iter=4",
    "train.checkpointer.period=2",
    "train.log_period=1",
    "model.num_queries=20",
    "model.select_box_nums_for_evaluation=20",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]


def precisions(output):
    return [line.partition("copypaste: ")[2] for line in output.splitlines() if "copypaste: 0" in line]


@pytest.mark.slow
def test_the_tools_take_it(run_tool, tmp_path):
    """A stopped training resumes. Checkpoint and exported weights evaluate equally, and the analysis accepts them."""
    config, folder = ["--config-file", CONFIG], tmp_path / "out"
    run_tool("train_net.py", *config, f"train.output_dir={folder}", *SMALL, "train.max_iter=2")
    trained = run_tool("train_net.py", *config, "--resume", f"train.output_dir={folder}", *SMALL)
    checkpoint, weights = folder / "model_final.pth", tmp_path / "weights.safetensors"
    content = torch.load(checkpoint, weights_only=True)
    assert content["iteration"] == 3 and all(value.isfinite().all() for value in content["model"].values())
    assert any("box_layers" in name for name in content["model"])

    run_tool("export-weights", "--checkpoint", checkpoint, "--output", weights)
    start = f"train.init_checkpoint={weights}"
    evaluated = run_tool("train_net.py", *config, "--eval-only", f"train.output_dir={tmp_path / 'eval'}", *SMALL, start)
    assert precisions(trained) and precisions(trained) == precisions(evaluated)

    report = tmp_path / "report"
    options = [override for override in SMALL if override.startswith(("train.device", "model", "dataloader.test"))]
    run_tool("analyze", *config, "--checkpoint", weights, "--output", report, *options)
    assert json.loads((report / "alignment.json").read_text())["models"][0]["figures"]


@pytest.mark.slow
def test_two_processes_train(run_tool, tmp_path):
    """Every parameter takes part in every step, else the processes would hang."""
    run_tool("train_net.py", "--config-file", CONFIG, "--num-gpus", 2, f"train.output_dir={tmp_path / 'two'}", *SMALL)
    assert (tmp_path / "two/model_final.pth").exists()
