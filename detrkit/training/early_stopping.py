"""End a training when a metric of its evaluations no longer improves."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig

from .checkpoints import SafeCheckpointer
from .evaluation import Evaluations
from .run_state import RunState

logger = logging.getLogger("detectron2.stopping")

FINAL = "model_final"
BEST_METRIC = "bbox/AP"


class StoppedEarly(BaseException):
    """Ends the iterations of a training that is done. Not an Exception: detectron2 would log it as an error."""


def best_metric(cfg: DictConfig) -> str:
    """The metric of the best checkpoint: `train.best_metric`."""
    return cfg.train.get("best_metric") or BEST_METRIC


def early_stopping(
    cfg: DictConfig, evaluations: Evaluations, checkpointer: SafeCheckpointer, state: RunState
) -> EarlyStopping | None:
    """The hook of `train.early_stopping`; None if its patience is 0.

    Raises:
        ValueError: it is on, and there are no evaluations during the training.
    """
    options = cfg.train.get("early_stopping") or {}
    patience = options.get("patience", 0)
    if not patience:
        return None
    if cfg.train.eval_period <= 0 or "evaluator" not in cfg.dataloader:
        raise ValueError(
            f"train.early_stopping.patience={patience} counts evaluations, but there are none during the training: "
            "set train.eval_period to a number of iterations, and dataloader.evaluator"
        )
    metric = options.get("metric") or best_metric(cfg)
    return EarlyStopping(evaluations, checkpointer, state, metric, patience, options.get("min_delta", 0.0))


class EarlyStopping(HookBase):
    """A hook that ends the training after `patience` evaluations in a row without a better value of a metric.

    It saves model_final.pth. Its count is in the checkpoints, so a resumed training stops at the same evaluation.
    Register it in every process, after the hooks that evaluate and that save the best checkpoint.

    Args:
        evaluations: the evaluations of the training.
        metric: as in metrics.json, such as "bbox/AP"; higher is better.
        min_delta: a value is better if it exceeds the best one by more than this.
    """

    def __init__(
        self,
        evaluations: Evaluations,
        checkpointer: SafeCheckpointer,
        state: RunState,
        metric: str,
        patience: int,
        min_delta: float = 0.0,
    ):
        self._evaluations, self._checkpointer, self._state = evaluations, checkpointer, state
        self._metric, self._patience, self._min_delta = metric, patience, min_delta
        self._seen = 0
        self._best: float | None = None
        self._best_iteration = -1
        self._stale = 0

    def before_train(self) -> None:
        if self._stale >= self._patience:
            self._log()
            raise StoppedEarly

    def after_step(self) -> None:
        if self._evaluations.count == self._seen:
            return
        self._seen = self._evaluations.count
        value = comm.all_gather(self._value())[0]  # other processes have no results
        if value is None:
            return
        if self._best is None or value > self._best + self._min_delta:
            self._best, self._best_iteration, self._stale = value, self.trainer.iter, 0
            return
        self._stale += 1
        if self._stale >= self._patience:
            self._state.collect(complete=True)
            self._checkpointer.save(FINAL, iteration=self.trainer.iter)
            self._log()
            raise StoppedEarly

    def _value(self) -> float | None:
        latest = self.trainer.storage.latest()
        value, iteration = latest.get(self._metric, (None, None))
        if comm.is_main_process() and iteration != self.trainer.iter:
            known = ", ".join(name for name in latest if latest[name][1] == self.trainer.iter and "/" in name)
            logger.warning("Early stopping: the evaluation has no %s; it has %s", self._metric, known or "no metrics")
            return None
        return value

    def _log(self) -> None:
        logger.info(
            "Stopped: %s is %.2f at best, after %d iterations, and %d evaluations since then are not better "
            "(train.early_stopping)",
            self._metric,
            self._best,
            self._best_iteration + 1,
            self._stale,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "iteration": self._best_iteration, "stale": self._stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._best_iteration = state_dict["best"], state_dict["iteration"]
        self._stale = state_dict["stale"]
