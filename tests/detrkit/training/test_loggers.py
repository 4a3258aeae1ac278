"""CSV and MLflow beside metrics.json, from the command line; and configs of earlier versions."""

import csv
import importlib.util
import json
import logging
import sys
import types
from pathlib import Path

import pytest

from detrkit.config.changes import DEFAULTS, config_changes, flat_config
from detrkit.config.load import load_config
from detrkit.training.loggers import mlflow_name, write_csv

TOY = str(Path(__file__).resolve().parents[1] / "commands" / "toy_config.py")
LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`train("a.b=1")` trains the toy detector; returns the output folder."""
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    from detrkit.commands import train

    def run(*words, options=()):
        train.train_net(["--config-file", TOY, *options, f"train.output_dir={tmp_path / 'toy'}", *words])
        return tmp_path / "toy"

    return run


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_the_table_is_metrics_json(train):
    """One row for each line, also after a resume; what a line does not have is empty."""
    folder = train("train.loggers=[csv]")
    train("train.loggers=[csv]", "train.max_iter=9", options=["--resume"])
    expected = sorted(rows_of(folder), key=lambda row: row["iteration"])
    with open(folder / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(expected) > 9 and list(table[0])[0] == "iteration"
    for row, line in zip(table, expected, strict=True):
        assert {name: float(value) for name, value in row.items() if value} == pytest.approx(line)
    assert any(not row["bbox/AP"] for row in table) and any(row["bbox/AP"] for row in table)


def test_no_metrics_no_table(tmp_path):
    write_csv(tmp_path / "metrics.json", tmp_path / "metrics.csv")
    assert not (tmp_path / "metrics.csv").exists()


def test_mlflow_store_on_this_disk(train, tmp_path, monkeypatch, capsys):
    """A local store has the metrics and the config; a resumed training goes on in its run. A store that mlflow refuses
    ends in one line."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions refuse it otherwise
    words = ["train.loggers=[mlflow]", f"train.mlflow.tracking_uri=sqlite:///{tmp_path}/store.db"]
    if importlib.util.find_spec("sqlalchemy") is None:  # the small package has a store of files alone
        words[1] = f"train.mlflow.tracking_uri={(tmp_path / 'store').as_uri()}"
    folder = train(*words, "train.mlflow.experiment=tests")
    train(*words, "train.mlflow.experiment=tests", "train.max_iter=9", options=["--resume"])
    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("tests").experiment_id])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "total_loss")
    found = {metric.step: metric.value for metric in history}
    assert {row["iteration"] for row in rows_of(folder) if "total_loss" in row} <= set(found)
    assert run.data.params["optimizer.lr"] == "0.1" and "bbox/AP" in run.data.metrics
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train("train.loggers=[mlflow]", "train.mlflow.tracking_uri=nothing://here", options=["--overwrite"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "nothing://here" in line


def test_mlflow_is_called(train, monkeypatch):
    """The same with a stand-in for the package: one run, its parameters, metrics by iteration, an end."""
    calls = []
    stand_in = types.ModuleType("mlflow")
    for name in ("set_tracking_uri", "set_experiment", "log_params", "end_run"):
        setattr(stand_in, name, lambda *args, name=name: calls.append((name, *args)))
    stand_in.log_metrics = lambda metrics, step: calls.append(("log_metrics", metrics, step))
    stand_in.start_run = lambda run_id, run_name: (
        calls.append(("start_run", run_id)) or types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    )
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    train("train.loggers=[mlflow]")
    train("train.loggers=[mlflow]", "train.max_iter=9", options=["--resume"])
    names = [call[0] for call in calls]
    assert [call for call in calls if call[0] == "start_run"] == [("start_run", None), ("start_run", "r1")]
    assert names.count("end_run") == 2 and names.count("log_params") >= 1 and "set_experiment" not in names
    metrics = [call for call in calls if call[0] == "log_metrics"]
    assert {5, 8} <= {step for _, _, step in metrics} and any("bbox/AP" in values for _, values, _ in metrics)


@pytest.mark.parametrize("words, message", [
    (["train.loggers=[cvs]"], "train.loggers has 'cvs': choose from csv, mlflow"),
    (["train.loggers=[mlflow]"], "train.loggers=[mlflow] needs a package: pip install mlflow, or leave it out"),
])  # fmt: skip
def test_mistakes_end_in_one_line(train, monkeypatch, capsys, words, message):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SystemExit):
        train(*words)
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


def test_names_that_mlflow_accepts():
    assert mlflow_name("bbox/AP-traffic light") == "bbox/AP-traffic light" and mlflow_name("a:b(c)") == "a_b_c_"


def test_trainings_of_earlier_versions_resume():
    """Their configs lack the settings of this version, which are off; switching one on is a change."""
    now = flat_config(load_config("dino_tiny"))
    assert {key: now[key] for key in DEFAULTS} == DEFAULTS
    before = {key: value for key, value in now.items() if key not in DEFAULTS and "early_stopping" not in key}
    assert config_changes(before, now) == []
    assert config_changes(before, {**now, "train.accumulate": "4"}) == ["train.accumulate=4 (was 1)"]
