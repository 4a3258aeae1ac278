"""Compare the config of a resumed training with the one it began with."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Settings that may change when a training is resumed: its length, device, records, evaluation and checkpoints.
HARMLESS = (
    "datasets.*",
    "dataloader.evaluator.*",
    "dataloader.test.*",
    "dataloader.train.num_workers",
    "dataloader.train.persistent_workers",
    "dataloader.train.pin_memory",
    "dataloader.train.prefetch_factor",
    "dataloader.train.total_batch_size",
    "model.device",
    "model.select_box_nums_for_evaluation",
    "train.checkpointer.*",
    "train.activation_checkpointing",
    "train.best_metric",
    "train.early_stopping.*",
    "train.loggers",
    "train.loggers.*",
    "train.mlflow.*",
    "train.compile",
    "train.ddp.*",
    "train.device",
    "train.eval_period",
    "train.fast_dev_run.*",
    "train.hang_seconds",
    "train.init_checkpoint",
    "train.log_period",
    "train.max_iter",
    "train.model_ema.device",
    "train.model_ema.use_ema_weights_for_eval_only",
    "train.output_dir",
    "train.report.*",
    "train.seed",
    "train.shard_optimizer",
    "train.skip_nonfinite",
    "train.wandb.*",
)

# Values of settings that configs of earlier versions do not have.
DEFAULTS = {
    "train.accumulate": "1",
    "train.dataset_shares": "size",
    "train.freeze.batch_norm": "False",
    "train.freeze.stages": "0",
    "train.layer_decay": "1.0",
    "train.mix.copy_paste": "0.0",
    "train.mix.mosaic": "0.0",
    "train.mix.most_pasted": "5",
    "train.repeat_threshold": "0.0",
}


def flat_config(cfg: DictConfig) -> dict[str, str]:
    """Return every value of a config by its dotted key, as text. References are not resolved.

    Classes and functions appear by their names without modules, as the modules of the embedded engine differ from those
    of detectron2 and detrex, and a training may move between the two.
    """
    return dict(_values(OmegaConf.to_container(cfg, resolve=False), ""))


def _values(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from _values(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list) and node:
        for number, child in enumerate(node):
            yield from _values(child, f"{key}.{number}")
    elif isinstance(node, str | int | float | bool | type(None)):
        yield key, str(node).rpartition(".")[2] if key.endswith("_target_") else str(node)
    elif callable(node):
        yield key, getattr(node, "__name__", type(node).__name__)
    else:
        yield key, type(node).__name__


def without_harmless(config: Mapping[str, str]) -> dict[str, str]:
    """Return a flat config without the settings that may change when a training is resumed."""
    return {key: value for key, value in config.items() if not _is_harmless(key)}


def _is_harmless(key: str) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in HARMLESS)


def config_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the differences that change the training, such as "optimizer.lr=0.1 (was 0.2)"."""
    before, now = {**DEFAULTS, **before}, {**DEFAULTS, **now}
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    serious = [key for key in keys if not _is_harmless(key)]
    return [f"{key}={now.get(key, 'nothing')} (was {before.get(key, 'nothing')})" for key in serious]
