"""Trainings of an experiment: what each trains, where its output goes, and the results it left there."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from align_detr._platform import EMBEDDED_ROOT
from detrkit.config.load import load_config
from detrkit.config.overrides import quoted
from detrkit.runtime.files import atomic_write

ROOT = EMBEDDED_ROOT.parent

METRIC = "bbox/AP"
METRICS = {  # kept of each run: name in metrics.json -> name and digits in a table
    METRIC: ("AP", 2),
    "bbox/AP50": ("AP50", 2),
    "bbox/AP75": ("AP75", 2),
    "alignment/boxes_per_object": ("boxes per object", 2),
    "alignment/best_in_top_n": ("best boxes in top N", 3),
    "alignment/pearson": ("Pearson", 3),
    "alignment/spearman": ("Spearman", 3),
    "layers/same_query": ("same query", 3),
}
LAYERS = "layers/"  # metrics of all decoder layers, which `align-detr analyze` measures
CONFIG_FILE, RESULT_FILE = "run_config.yaml", "run_result.json"  # in a run's folder


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: name of the row, and of the folder.
        config: config file to train.
        changes: `(key, value)` that differ from the config, as written on the command line.
    """

    name: str
    config: Path
    changes: tuple[tuple[str, str], ...] = ()


@dataclass
class Run:
    """A training of a setting.

    Attributes:
        folder: output folder of the training.
        overrides: `key=value` of its command line.
        fingerprint: its config as text, without the output folder.
        may_use_gpu: whether its config leaves the device open or asks for a GPU.
        analyze: whether `align-detr analyze` measures the trained model as well.
        result: metrics of the last evaluation, with "seed" and "seconds"; None before the training has succeeded.
        error: why it failed, in one line; empty if it did not.
    """

    setting: Setting
    seed: int
    folder: Path
    overrides: list[str]
    max_iter: int
    fingerprint: str
    may_use_gpu: bool
    analyze: bool = False
    result: dict | None = None
    error: str = ""

    @property
    def title(self) -> str:
        return f"{self.setting.name}, seed {self.seed}"


def make_run(
    output: Path, setting: Setting, seed: int, common: Sequence[str], max_iter: int | None, analyze: bool = False
) -> Run:
    """The training of `setting` with `seed` in a folder below `output`, with its result if it is finished.

    Args:
        common: overrides besides the setting's own changes.
        max_iter: iterations; None for the config's.

    Raises:
        ValueError: the folder holds a run of another config.
    """
    # No "=" or spaces in folder names: overrides that name a file would need quotes.
    name = re.sub(r"[^\w.+-]+", "_", setting.name.replace("=", "-"))
    folder = output / name / f"seed_{seed}"
    overrides = [*common, *(f"{key}={value}" for key, value in setting.changes), f"train.seed={seed}"]
    overrides += [] if max_iter is None else [f"train.max_iter={max_iter}"]
    cfg = load_config(str(setting.config), overrides)
    overrides.append(f"train.output_dir={quoted(str(folder))}")
    may_use_gpu = cfg.train.device in ("auto", "cuda")
    run = Run(setting, seed, folder, overrides, cfg.train.max_iter, fingerprint_of(cfg), may_use_gpu, analyze)
    saved = folder / CONFIG_FILE
    if saved.is_file() and saved.read_text(encoding="utf-8") != run.fingerprint:
        raise ValueError(f"{folder} holds a run of another config: choose another --output, or delete it")
    if (folder / RESULT_FILE).is_file():
        run.result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    return run


def fingerprint_of(cfg: DictConfig) -> str:
    """A config as text, without its output folder."""
    cfg.train.output_dir = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        LazyConfig.save(cfg, str(path))
        return path.read_text(encoding="utf-8")


def read_result(run: Run, seconds: float) -> dict | None:
    """Read the metrics of the last evaluation, and save them in the run's folder.

    Returns:
        The metrics; None, with `run.error` set, if there are none.
    """
    rows = read_rows(run.folder / "metrics.json")
    last = next((row for row in reversed(rows) if row.get(METRIC) is not None), None)
    if last is None:
        run.error = f"its metrics.json has no {METRIC}"
        return None
    result = {"seed": run.seed, "seconds": round(seconds)} | {name: last[name] for name in METRICS if name in last}
    if run.analyze:
        (model,) = json.loads((run.folder / "alignment/alignment.json").read_text(encoding="utf-8"))["models"]
        result |= {n: model["figures"][n.removeprefix(LAYERS)] for n in METRICS if n.startswith(LAYERS)}
    write(run.folder / RESULT_FILE, json.dumps(result))
    for checkpoint in run.folder.glob("model_[0-9]*.pth"):  # only needed to resume
        checkpoint.unlink()
    return result


def read_rows(path: Path) -> list[dict]:
    """The complete lines of a metrics.json, which a training may be writing to."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def progress_of(run: Run) -> int:
    """Number of iterations that are done."""
    if run.result:
        return run.max_iter
    rows = read_rows(run.folder / "metrics.json")
    return min(rows[-1]["iteration"] + 1, run.max_iter) if rows else 0


def last_error(console: Path) -> str:
    """The error in a run's output, or its last line."""
    lines = [line.strip() for line in console.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def outcome(run: Run) -> str:
    """The result of a run in a few words."""
    if run.result is None:
        return f"failed: {run.error}"
    return f"AP {run.result[METRIC]:.2f} in {timedelta(seconds=run.result['seconds'])}"


def relative(path: Path) -> str:
    """A path relative to the checkout; absolute if it lies elsewhere."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def write(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with atomic_write(path) as file:
        file.write(f"{text}\n".encode())
