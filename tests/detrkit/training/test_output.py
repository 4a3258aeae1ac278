"""What a training writes while it runs: a line for each evaluation, on the terminal and in metrics.json."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from detrkit import load_config, train
from detrkit.training.checkpoints import SafeCheckpointer
from detrkit.training.output_folder import check_output_folder

TOY = str(Path(__file__).parents[1] / "commands" / "toy_config.py")
PERIODS = ("train.max_iter=12", "train.eval_period=2", "train.log_period=5")


def test_every_evaluation_is_a_line_of_metrics_json(tmp_path):
    """Two of three evaluations fall between two log writes; none of them is lost."""
    train(load_config(TOY, [f"train.output_dir={tmp_path}", *PERIODS]))
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    evaluated = [row["iteration"] for row in rows if "bbox/AP" in row]
    assert evaluated == [1, 3, 5, 7, 9, 12]


def test_the_terminal_has_one_line_for_each_evaluation_and_one_table(tmp_path, capfd):
    """The lines give AP and the best so far; log.txt holds all that the evaluators say."""
    results = train(load_config(TOY, [f"train.output_dir={tmp_path}", *PERIODS]))
    lines = capfd.readouterr().out.splitlines()
    evaluations = [line for line in lines if "Evaluation after" in line]
    scores = [float(re.search(r"AP (-?[\d.]+)", line)[1]) for line in evaluations]
    best = [float(re.search(r"best AP so far (-?[\d.]+)", line)[1]) for line in evaluations]
    assert len(evaluations) == 6 and best == [max(scores[: count + 1]) for count in range(6)]
    assert scores[-1] == round(results["bbox"]["AP"], 2)
    around = [line for line in lines if re.search("inference on|saved as|Saved checkpoint.*best", line, re.IGNORECASE)]
    assert not around
    assert sum("Results of bbox," in line for line in lines) == 1
    assert "nference on" in (tmp_path / "log.txt").read_text()


def test_an_evaluation_before_an_error_has_its_own_iteration(tmp_path, monkeypatch, capfd):
    """On a full disk, the line said that all iterations were done."""

    def full_disk(self):
        monkeypatch.undo()  # the writers write once more at the end
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detectron2.utils.events.JSONWriter.write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(load_config(TOY, [f"train.output_dir={tmp_path}", "train.log_period=5"]))
    assert "Evaluation after 3 of 6 iterations" in capfd.readouterr().out


def test_a_resumed_training_keeps_as_many_checkpoints(tmp_path):
    """Those from before count, and those that an interruption saved; what an earlier resume repeats is newer."""
    options = [f"train.output_dir={tmp_path}", "train.checkpointer.period=2", "train.checkpointer.max_to_keep=2"]
    train(load_config(TOY, [*options, "train.max_iter=6"]))
    for number, iteration in enumerate((1, 2, 4, 99)):  # as stops and a run of an earlier version left them
        path = tmp_path / f"model_{iteration:07d}.pth"
        path.write_bytes((tmp_path / "model_final.pth").read_bytes())
        os.utime(path, (number, number))
    train(load_config(TOY, [*options, "train.max_iter=8"]), resume=True)
    assert sorted(path.name for path in tmp_path.glob("model_0*")) == ["model_0000005.pth", "model_0000007.pth"]


@pytest.mark.parametrize("period, lines", [(100, 1), (4, 1), (1, 0)])
def test_the_first_iteration_is_a_line(tmp_path, capfd, period, lines):
    """In a short training nothing was seen before the first evaluation; a log line of each iteration is enough."""
    train(load_config(TOY, [f"train.output_dir={tmp_path}", f"train.log_period={period}"]))
    out = capfd.readouterr().out
    assert len(re.findall(r"Iteration 1 of 6 is done: total loss [\d.]+, [\d.]+ s; a line follows", out)) == lines


@pytest.mark.parametrize("left_out, is_warning", [((), False), (("backbone.0.bias",), True), (("head.bias",), True)])
def test_the_weights_of_a_backbone_are_no_warning(tmp_path, caplog, left_out, is_warning):
    """All tensors of the backbone and none of the rest: as it should be. Any other part of a model is a warning."""
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(2, 2)), "head": nn.Linear(2, 2)})
    names = model.state_dict().keys() if "head.bias" in left_out else ("backbone.0.weight", "backbone.0.bias")
    state = {name: tensor for name, tensor in model.state_dict().items() if name in names and name not in left_out}
    torch.save({"model": state}, tmp_path / "part.pth")
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(model).load(str(tmp_path / "part.pth"))
    text = "Initial weights of the backbone from .*part.pth: all of its 2 tensors. The other 2 tensors"
    assert bool(re.search(text, caplog.text)) != is_warning
    assert any(record.levelno >= logging.WARNING for record in caplog.records) == is_warning


def test_a_check_of_the_output_folder_creates_and_removes_nothing(tmp_path, monkeypatch):
    """Protects trainings that begin together: one must not remove a parent folder that another has just created."""
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: pytest.fail("a folder was created"))
    monkeypatch.setattr(Path, "rmdir", lambda *args: pytest.fail("a folder was removed"))
    check_output_folder(tmp_path / "runs/seed_1", resume=False, overwrite=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to train.output_dir=.*: Not a directory; choose another folder"):
        check_output_folder(tmp_path / "file/run", resume=False, overwrite=False)
