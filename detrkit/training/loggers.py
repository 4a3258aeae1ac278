"""Metrics as a CSV file, and for MLflow: `train.loggers`."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage
from omegaconf import DictConfig

from detrkit.config.changes import flat_config
from detrkit.runtime.files import atomic_write

CSV_SECONDS = 10  # between two writes of the file
RUN_FILE = "mlflow_run.txt"
MOST_LETTERS = 500  # of a parameter's value in MLflow


def build_loggers(cfg: DictConfig) -> list[EventWriter]:
    """The writers of `train.loggers`, besides console, metrics.json, TensorBoard and W&B.

    Raises:
        ValueError: there is no such logger, or its package is missing.
    """
    names = list(cfg.train.get("loggers") or [])
    if unknown := [name for name in names if name not in LOGGERS]:
        raise ValueError(f"train.loggers has {unknown[0]!r}: choose from {', '.join(LOGGERS)}")
    return [LOGGERS[name](cfg) for name in names]


class CsvWriter(EventWriter):
    """A table of metrics.json as `metrics.csv`: a row for each line, a column for each metric, empty where it has none.

    The file is rewritten every few seconds and at the end, because evaluations add columns. Register it after the
    writer of metrics.json.
    """

    def __init__(self, cfg: DictConfig):
        self._folder = Path(cfg.train.output_dir)
        self._last_write = time.monotonic()

    def write(self) -> None:
        if time.monotonic() - self._last_write >= CSV_SECONDS:
            self._last_write = time.monotonic()
            write_csv(self._folder / "metrics.json", self._folder / "metrics.csv")

    def close(self) -> None:
        write_csv(self._folder / "metrics.json", self._folder / "metrics.csv")


def write_csv(source: Path, target: Path) -> None:
    """Write a metrics.json as a CSV table, sorted by iteration; on an error no file is changed."""
    if not source.is_file():
        return
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    columns = ["iteration", *sorted({name for row in rows for name in row} - {"iteration"})]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["iteration"]))
    with atomic_write(target) as file:
        file.write(text.getvalue().encode())


class MlflowWriter(EventWriter):
    """Metrics and the config for MLflow, in the run of `train.mlflow`. A resumed training continues its run.

    Raises:
        ValueError: mlflow is not installed.
    """

    def __init__(self, cfg: DictConfig, window_size: int = 20):
        try:
            import mlflow
        except ImportError as error:
            raise ValueError("train.loggers=[mlflow] needs a package: pip install mlflow, or leave it out") from error
        self._mlflow, self._window_size, self._last_write = mlflow, window_size, -1
        options = cfg.train.get("mlflow") or {}
        if options.get("tracking_uri"):  # else MLflow's environment variables
            mlflow.set_tracking_uri(options.tracking_uri)
        if options.get("experiment"):
            mlflow.set_experiment(options.experiment)
        file = Path(cfg.train.output_dir, RUN_FILE)
        resumes = file.is_file() and any(file.parent.glob("model_*.pth"))
        run_id = file.read_text(encoding="utf-8").strip() if resumes else None
        run = mlflow.start_run(run_id=run_id, run_name=options.get("run_name") or file.parent.name)
        if run_id is None:
            file.write_text(run.info.run_id, encoding="utf-8")
            params = {mlflow_name(key): value[:MOST_LETTERS] for key, value in flat_config(cfg).items()}
            names = sorted(params)
            for start in range(0, len(names), 100):  # its limit for one call
                mlflow.log_params({name: params[name] for name in names[start : start + 100]})

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(self._window_size)
        news = {mlflow_name(name): value for name, (value, at) in latest.items() if at > self._last_write}
        self._mlflow.log_metrics(news, step=storage.iter)
        self._last_write = storage.iter

    def close(self) -> None:
        self._mlflow.end_run()


def mlflow_name(name: str) -> str:
    """A name that MLflow accepts: letters, numbers and a few signs."""
    return re.sub(r"[^\w\-. /]", "_", name)


LOGGERS: dict[str, Callable[[DictConfig], Any]] = {"csv": CsvWriter, "mlflow": MlflowWriter}
