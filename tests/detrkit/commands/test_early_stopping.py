"""Early stopping, the metric of the best checkpoint, and accumulation, by `align-detr train` and after a resume."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import kills
import pytest
import torch

CONFIG = str(Path(__file__).with_name("oracle_config.py"))
TOOL = str(Path(__file__).resolve().parents[3] / "tools" / "train_net.py")
LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")
STOPS = ["train.max_iter=20", "train.early_stopping.patience=3"]  # AP is 100 from the first evaluation on


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`train("a.b=1")` trains the oracle; returns the output folder."""
    import oracle

    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    oracle.draw(tmp_path / "data")
    for split in ("train", "val"):
        oracle.annotate(tmp_path / "data", f"{split}.json", {1: "cat", 2: "dog", 3: "eel"})
    monkeypatch.setenv("ORACLE", str(tmp_path / "data"))
    from detrkit.commands import train

    def run(*words, folder="out"):
        train.train_net(["--config-file", CONFIG, f"train.output_dir={tmp_path / folder}", *words])
        return tmp_path / folder

    return run


def content(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)


def test_it_stops_after_the_patience(train, capsys):
    """The first evaluation is the best, three more are not: 8 iterations of 20, with the final checkpoint."""
    folder = train(*STOPS)
    assert content(folder)["iteration"] == 7 and (folder / "last_checkpoint").read_text() == "model_final.pth"
    text = capsys.readouterr().out
    assert "Stopped: bbox/AP is 100.00 at best, after 2 iterations, and 3 evaluations since then are not better" in text
    assert "Traceback" not in text and "Results of bbox" in text
    train("--resume", *STOPS)
    assert content(folder)["iteration"] == 7
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert max(row["iteration"] for row in rows) == 7


def test_a_resumed_training_stops_where_the_other_did(train):
    """The count is in the checkpoints: after the checkpoint of iteration 3 it is 1."""
    straight = train(*STOPS, folder="straight")
    other = train(*STOPS)
    for path in other.glob("model_*.pth"):
        if path.name != "model_0000003.pth":
            path.unlink()
    (other / "last_checkpoint").write_text("model_0000003.pth")
    train("--resume", *STOPS)
    expected, found = content(straight), content(other)
    assert found["iteration"] == expected["iteration"] == 7
    assert found["trainer"]["hooks"]["EarlyStopping"] == expected["trainer"]["hooks"]["EarlyStopping"]


def test_metrics_by_name(train, capsys):
    """Any metric of the evaluation; one that it does not have is named, with those that it has."""
    folder = train("train.max_iter=4", "train.best_metric=bbox/AP-dog")
    assert content(folder, "model_best.pth")["trainer"]["hooks"]["BestCheckpointer"]["best"] == pytest.approx(100)
    assert "best bbox/AP-dog so far 100.00" in capsys.readouterr().out
    train("train.early_stopping.patience=1", "train.early_stopping.metric=bbox/AP-cow", folder="other")
    assert "the evaluation has no bbox/AP-cow; it has bbox/AP, bbox/AP50" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    (["train.early_stopping.patience=2", "train.eval_period=0"], "train.early_stopping.patience=2 counts evaluations"),
    (["train.accumulate=0"], "train.accumulate=0: expected an integer from 1 up"),
])  # fmt: skip
def test_mistakes_end_in_one_line(train, capsys, words, message):
    with pytest.raises(SystemExit):
        train(*words)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_accumulation_and_its_resume(tmp_path, processes):
    """Killed at random moments, between the batches of a step too: the same end to the bit."""
    words = [f"--output={tmp_path}", "--kills=4", "--per-run=2", f"--processes={processes}", "train.accumulate=3"]
    result = subprocess.run([sys.executable, kills.__file__, *words], capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 ended differently, 0 unreadable" in result.stdout


@pytest.mark.slow
def test_two_processes_stop_together(train, tmp_path):
    """Only the main process has the results, and the others end with it."""
    train("train.max_iter=1", "train.eval_period=0")  # draws the data
    words = [f"train.output_dir={tmp_path / 'two'}", "train.ddp.find_unused_parameters=True", *STOPS]
    worker = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command = [*worker, "--rdzv-endpoint=localhost:0", TOOL, "--config-file", CONFIG, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "two")["iteration"] == 7
