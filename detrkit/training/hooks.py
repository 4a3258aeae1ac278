"""Hooks that save checkpoints, write metrics, and log a line for each evaluation."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.engine.defaults import default_writers
from detectron2.utils.events import EventWriter, get_event_storage
from omegaconf import DictConfig, OmegaConf

from .checkpoints import BestCheckpointer, SafeCheckpointer
from .early_stopping import BEST_METRIC, best_metric
from .evaluation import Evaluations
from .loggers import build_loggers

logger = logging.getLogger("detectron2.training")


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """detectron2's `PeriodicCheckpointer`, which counts the checkpoints from before a resume in `max_to_keep` too.

    Among them are those that `StopEarly` saved.
    """

    def after_step(self) -> None:
        super().after_step()
        done = self.trainer.iter + 1
        if self.max_to_keep is None or not (done % self.period == 0 or done >= self.trainer.max_iter):
            return
        numbered = re.compile(rf"{re.escape(self.file_prefix)}_\d{{7}}\.pth")
        files = [path for path in Path(self.checkpointer.save_dir).iterdir() if numbered.fullmatch(path.name)]
        files.sort(key=lambda path: (path.stat().st_mtime, path.name))  # a resume may repeat iterations
        for path in files[: -self.max_to_keep]:
            path.unlink(missing_ok=True)
        self.recent_checkpoints = [str(path) for path in files[-self.max_to_keep :]]


def periodic_checkpointer(cfg: DictConfig, checkpointer: SafeCheckpointer) -> PeriodicCheckpointer:
    """Save every `train.checkpointer.period` iterations and at the end; with a period of 0 at the end only."""
    period, max_to_keep = cfg.train.checkpointer.period, cfg.train.checkpointer.max_to_keep
    return PeriodicCheckpointer(checkpointer, period or cfg.train.max_iter + 1, max_to_keep=max_to_keep)


def best_checkpointer(cfg: DictConfig, checkpointer: SafeCheckpointer) -> BestCheckpointer | None:
    """Save the model of the highest `train.best_metric`; None if the config has no evaluator."""
    if "evaluator" not in cfg.dataloader:
        return None
    return BestCheckpointer(cfg.train.eval_period, checkpointer, best_metric(cfg))


def saves_at(cfg: DictConfig, iteration: int) -> bool:
    """Whether a checkpoint may be saved after this iteration."""
    done = iteration + 1
    periods = (cfg.train.checkpointer.period, cfg.train.eval_period)
    return done >= cfg.train.max_iter or any(period > 0 and done % period == 0 for period in periods)


class MetricsWriter(hooks.PeriodicWriter):
    """Write metrics every `train.log_period` iterations, and after each evaluation.

    Otherwise, of two evaluations between two writes, only the second would be written.
    """

    def __init__(self, cfg: DictConfig):
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter) + build_loggers(cfg)
        super().__init__(writers + [WandbWriter(cfg)] if cfg.train.wandb.enabled else writers, cfg.train.log_period)
        self._log_period, self._eval_period = cfg.train.log_period, cfg.train.eval_period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._eval_period > 0 and done % self._eval_period == 0 and done % self._log_period != 0:
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()


class FirstLine(HookBase):
    """Log one line after the first iteration, as the next line may be minutes away.

    Register it before the writer, for the main process.
    """

    def __init__(self, log_period: int):
        self._log_period = log_period
        self._begin = 0.0

    def before_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter:
            self._begin = time.perf_counter()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.trainer.iter != self.trainer.start_iter or done % self._log_period == 0:
            return
        latest = self.trainer.storage.latest()
        loss = f"total loss {latest['total_loss'][0]:.4g}, " if "total_loss" in latest else ""
        logger.info(
            "Iteration %d of %d is done: %s%.1f s; a line follows every %d iterations",
            done,
            self.trainer.max_iter,
            loss,
            time.perf_counter() - self._begin,
            self._log_period,
        )


class EvaluationLine(HookBase):
    """Log one line after each evaluation: AP, AP50, AP75, and the best metric so far.

    Register it after the evaluation and after `best`.

    Args:
        evaluations: the evaluations of the training.
        best: knows the best value, also from before a resume; None leaves it out.
        metric: of `best`.
    """

    def __init__(self, evaluations: Evaluations, best: BestCheckpointer | None, metric: str = BEST_METRIC):
        self._metric = "AP" if metric == BEST_METRIC else metric
        self._evaluations = evaluations
        self._best = best
        self._logged = 0

    def after_step(self) -> None:
        self._log(self.trainer.iter + 1)

    def after_train(self) -> None:
        # An error of another hook may have ended the training between an evaluation and its line.
        self._log(min(self.trainer.iter + 1, self.trainer.max_iter))

    def _log(self, done: int) -> None:
        if self._evaluations.count == self._logged:
            return
        self._logged = self._evaluations.count
        metrics = main_metrics(self._evaluations.results)
        if not metrics:
            return
        text = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
        if self._best is not None and self._best.best_metric is not None:
            text += f"; best {self._metric} so far {self._best.best_metric:.2f}"
            if self._best.best_iter is not None:  # unknown in checkpoints of earlier versions
                text += f", after {min(self._best.best_iter + 1, self.trainer.max_iter)} iterations"
        total, seconds = self.trainer.max_iter, self._evaluations.seconds
        logger.info("Evaluation after %d of %d iterations: %s (%.0f s)", done, total, text, seconds)


def main_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """AP, AP50 and AP75 of the boxes; without them, up to three metrics of the first task."""
    metrics = results.get("bbox") or next((m for m in results.values() if isinstance(m, Mapping) and m), {})
    names = [name for name in ("AP", "AP50", "AP75") if name in metrics] or list(metrics)[:3]
    return {name: metrics[name] for name in names}


class WandbWriter(EventWriter):
    """Scalars for Weights & Biases; `train.wandb.params` go to `wandb.init`.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(self, cfg: DictConfig, window_size: int = 20):
        try:
            import wandb
        except ImportError as error:
            raise ValueError("train.wandb.enabled needs wandb: pip install wandb, or switch it off") from error
        params: dict[str, Any] = dict(cfg.train.wandb.params)
        Path(params.get("dir", ".")).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(config=OmegaConf.to_container(cfg.train, resolve=True), **params)
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(self._window_size)
        news = {name: value for name, (value, iteration) in latest.items() if iteration > self._last_write}
        self._run.log(news, step=storage.iter)
        self._last_write = storage.iter

    def close(self) -> None:
        self._run.finish()
