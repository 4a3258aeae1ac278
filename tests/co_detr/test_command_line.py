"""Co-DINO on the command line: train, resume, export, evaluate with and without heads, analyse."""

import json

import pytest
import torch

CONFIG = "projects/co_detr/configs/co_dino_tiny.py"
DINO = "configs/baselines/dino_tiny.py"
SMALL = [
    "train.device=cpu",
    "train.max_iter=4",
    "train.checkpointer.period=2",
    "train.log_period=1",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]


def precisions(output):
    return [line.partition("copypaste: ")[2] for line in output.splitlines() if "copypaste: 0" in line]


@pytest.mark.slow
def test_the_tools_take_it(run_tool, tmp_path):
    """A stopped training resumes with its heads. Exported weights have no heads, load completely into DINO's config and
    Co-DINO's, and detect the same in both. The analysis accepts them."""
    config, folder = ["--config-file", CONFIG], tmp_path / "out"
    run_tool("train_net.py", *config, f"train.output_dir={folder}", *SMALL, "train.max_iter=2")
    half = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    trained = run_tool("train_net.py", *config, "--resume", f"train.output_dir={folder}", *SMALL)
    checkpoint, weights = folder / "model_final.pth", tmp_path / "weights.safetensors"
    content = torch.load(checkpoint, weights_only=True)["model"]
    heads = [name for name in content if name.startswith("collaboration.")]
    assert heads and any(not torch.equal(content[name], half[name]) for name in heads)

    output = run_tool("export-weights", "--checkpoint", checkpoint, "--output", weights, "--config-file", DINO)
    assert "collaboration" not in output
    run_tool("export-weights", "--checkpoint", checkpoint, "--output", tmp_path / "own.pth", *config)
    for i, other in enumerate((CONFIG, DINO)):
        options = [f"train.output_dir={tmp_path / str(i)}", *SMALL, f"train.init_checkpoint={weights}"]
        evaluated = run_tool("train_net.py", "--config-file", other, "--eval-only", *options)
        assert precisions(trained) and precisions(trained) == precisions(evaluated)

    report = tmp_path / "report"
    options = [override for override in SMALL if override.startswith(("train.device", "dataloader.test"))]
    options += ["--compare", f"{CONFIG}:{checkpoint}", "--names", "exported", "trained"]
    run_tool("analyze", *config, "--checkpoint", weights, "--output", report, *options)
    first, second = json.loads((report / "alignment.json").read_text())["models"]
    assert first["figures"] == second["figures"] and first["figures"]["discriminability"] is not None


@pytest.mark.slow
def test_two_processes_train(run_tool, tmp_path):
    """Every parameter takes part in every step, else the processes would hang."""
    run_tool("train_net.py", "--config-file", CONFIG, "--num-gpus", 2, f"train.output_dir={tmp_path / 'two'}", *SMALL)
    assert (tmp_path / "two/model_final.pth").exists()
