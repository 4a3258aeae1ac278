"""What a training writes while it runs: a line for each evaluation, on the terminal and in metrics.json."""

import json
import re
from pathlib import Path

import pytest

from detrkit import load_config, train
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


def test_a_check_of_the_output_folder_creates_and_removes_nothing(tmp_path, monkeypatch):
    """Protects trainings that begin together: one must not remove a parent folder that another has just created."""
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: pytest.fail("a folder was created"))
    monkeypatch.setattr(Path, "rmdir", lambda *args: pytest.fail("a folder was removed"))
    check_output_folder(tmp_path / "runs/seed_1", resume=False, overwrite=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to train.output_dir=.*: Not a directory; choose another folder"):
        check_output_folder(tmp_path / "file/run", resume=False, overwrite=False)
