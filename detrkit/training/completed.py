"""Whether the training in a folder is complete, so that resuming it has nothing to do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.utils import comm
from omegaconf import DictConfig

from .checkpoints import ResumePoint
from .early_stopping import best_metric

BEST = "model_best.pth"
OF_REPORT = ("alignment", "errors")  # beginnings of metrics that the report adds to those of the evaluation


class Completed(NamedTuple):
    """A complete training.

    Attributes:
        results: of its last evaluation, `{task: metrics}`; {} without an evaluator.
        message: one line, with what continues it.
    """

    results: dict[str, dict[str, float]]
    message: str

    def report(self) -> dict[str, dict[str, float]]:
        """Print the message, in the main process, and return the results."""
        if comm.is_main_process():
            print(self.message, flush=True)
        return self.results


def completed_training(cfg: DictConfig, point: ResumePoint) -> Completed | None:
    """The training that `point` ended; None if iterations or its last evaluation are missing.

    Every process of a run calls it; the main process reads the folder.
    """
    found = _read(cfg, point) if comm.is_main_process() else None
    return comm.all_gather(found)[0]


def _read(cfg: DictConfig, point: ResumePoint) -> Completed | None:
    done = point.iteration + 1
    folder = cfg.train.output_dir
    patience = (cfg.train.get("early_stopping") or {}).get("patience", 0)
    stopped_early = 0 < patience <= point.hooks.get("EarlyStopping", {}).get("stale", 0)
    if cfg.train.fast_dev_run.enabled or not (stopped_early or done >= cfg.train.max_iter):
        return None
    results: dict[str, dict[str, float]] = {}
    if "evaluator" in cfg.dataloader:
        # An evaluation after the last iteration has the number of iterations; others have that of their iteration.
        row = _last_row(Path(folder, "metrics.json"))
        if row.get("iteration") != (point.iteration if stopped_early else done):
            return None
        results = _nested(row)
        if not results or _lacks_best(cfg, point, row):
            return None
    advice = "train.early_stopping.patience" if stopped_early else "train.max_iter"
    how = "stopped early after" if stopped_early else "complete:"
    return Completed(
        results,
        f"the training in {folder} is {how} {done} iterations, and nothing was changed; to go on, give --resume with "
        f"a larger {advice}",
    )


def _last_row(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return row if isinstance(row, dict) else {}


def _nested(row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """`{"bbox/AP": 1.0}` as `{"bbox": {"AP": 1.0}}`."""
    results: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        task, slash, metric = name.partition("/")
        if slash and task not in OF_REPORT:
            results.setdefault(task, {})[metric] = value
    return results


def _lacks_best(cfg: DictConfig, point: ResumePoint, row: Mapping[str, Any]) -> bool:
    """Whether the process ended after the last evaluation, and before it saved that model as the best one."""
    if point.name == BEST:  # which detectron2 saves before it notes the new value
        return False
    value, best = row.get(best_metric(cfg)), point.hooks.get("BestCheckpointer", {}).get("best")
    return value is not None and math.isfinite(value) and (best is None or value > best)
