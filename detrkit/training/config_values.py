"""Checks of a config's values, before anything is read, built or written."""

from __future__ import annotations

import math

from omegaconf import DictConfig, OmegaConf

from detrkit.config.load import call_parameters
from detrkit.runtime.device import resolve_device

from .builders import AMP_TYPES, amp_name

SECTIONS = ("train", "model", "dataloader", "optimizer", "lr_multiplier")
# The smallest value of keys that are integers, and what it means if that is not obvious.
LEAST = {
    "dataloader.train.total_batch_size": (1, ""),
    "dataloader.train.num_workers": (0, "the training reads the images itself"),
    "dataloader.test.num_workers": (0, "the evaluation reads the images itself"),
    "model.num_queries": (1, ""),
    "train.max_iter": (1, ""),
    "train.accumulate": (1, ""),
    "train.log_period": (1, ""),
    "train.eval_period": (0, "evaluate only at the end"),
    "train.checkpointer.period": (0, "save only at the end"),
    "train.checkpointer.max_to_keep": (1, ""),
    "train.early_stopping.patience": (0, "never stop early"),
    "train.skip_nonfinite": (0, ""),
}
MAY_BE_NULL = ("train.checkpointer.max_to_keep",)  # null: keep all


def check_values(cfg: DictConfig, config_file: str = "") -> None:
    """Check that a config is one of a training, that its values are in range, and that its device is there.

    Keys that a config does not have are not checked.

    Args:
        config_file: where the config came from, for messages.

    Raises:
        ValueError: the config lacks a section, or a value cannot be used.
    """
    for key in SECTIONS:
        if key not in cfg:
            raise ValueError(f"{config_file or 'the config'} has no {key}, so it is not the config of a training")
    for key, (least, meaning) in LEAST.items():
        value = OmegaConf.select(cfg, key, default=least)
        if (type(value) is not int or value < least) and not (value is None and key in MAY_BE_NULL):
            note = f" ({least}: {meaning})" if meaning else ""
            raise ValueError(f"{key}={value}: expected an integer from {least} up{note}")
    for key in ("optimizer.lr", "optimizer.weight_decay"):
        value = OmegaConf.select(cfg, key, default=0)
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise ValueError(f"{key}={value}: expected a finite number from 0 up")
    if cfg.train.amp.enabled and amp_name(cfg) not in AMP_TYPES:
        raise ValueError(f"train.amp.dtype={amp_name(cfg)} is not one of {', '.join(AMP_TYPES)}")
    resolve_device(cfg.train.device)


def set_device(cfg: DictConfig) -> None:
    """Replace the device "auto" by a kind of device, in place, in the model too."""
    cfg.train.device = resolve_device(cfg.train.device)
    if "device" in call_parameters(cfg.model.get("_target_")):
        cfg.model.device = cfg.train.device
