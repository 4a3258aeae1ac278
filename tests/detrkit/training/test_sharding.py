"""A sharded optimizer in two processes: the steps of a plain one, and resumed by any number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit.training.sharding import gather_shards, shard_optimizer

ROOT = Path(__file__).resolve().parents[3]
TOY = ROOT / "tests/detrkit/commands/toy_config.py"


def run(folder, *options, processes=2, resume=False):
    """Losses by iteration of a training through the command line."""
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(TOY)]
    command += ["--num-gpus", str(processes), *(["--resume"] if resume else [])]
    command += [f"train.output_dir={folder}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


@pytest.mark.slow
def test_two_processes_train_and_resume_as_with_a_plain_optimizer(tmp_path):
    """Resumed after three of six iterations, the weights end up as those of a training that went through."""
    plain = run(tmp_path / "plain")
    assert run(tmp_path / "sharded", "train.shard_optimizer=True") == pytest.approx(plain)
    through = weights(tmp_path / "sharded")
    (tmp_path / "sharded/model_final.pth").unlink()
    (tmp_path / "sharded/last_checkpoint").write_text("model_0000002.pth")
    assert run(tmp_path / "sharded", "train.shard_optimizer=True", resume=True).keys() == plain.keys()
    for found in (through, weights(tmp_path / "sharded")):
        expected = weights(tmp_path / "plain")
        for name, tensor in expected["model"].items():
            torch.testing.assert_close(found["model"][name], tensor, msg=name)
        for index, state in expected["optimizer"]["state"].items():
            torch.testing.assert_close(found["optimizer"]["state"][index]["exp_avg"], state["exp_avg"])


@pytest.mark.slow
def test_one_process_goes_on_from_two(tmp_path):
    """The file of a sharded training is that of any other."""
    run(tmp_path, "train.shard_optimizer=True", "train.max_iter=3")
    losses = run(tmp_path, "train.max_iter=6", processes=1, resume=True)
    assert losses.keys() == set(range(6))


def test_one_process_needs_no_shards():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    assert shard_optimizer(optimizer) is optimizer
    gather_shards(optimizer)
