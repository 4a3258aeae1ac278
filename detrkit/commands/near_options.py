"""What a user meant by an option that a command does not have."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

# Options of other programs, without dashes, and the config's key for the same.
KEYS = {
    "amp": "train.amp.enabled",
    "batch": "dataloader.train.total_batch_size",
    "batch-size": "dataloader.train.total_batch_size",
    "device": "train.device",
    "ims-per-batch": "dataloader.train.total_batch_size",
    "init-checkpoint": "train.init_checkpoint",
    "iterations": "train.max_iter",
    "iters": "train.max_iter",
    "learning-rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "max-iter": "train.max_iter",
    "num-classes": "model.num_classes",
    "num-queries": "model.num_queries",
    "num-workers": "dataloader.train.num_workers",
    "output": "train.output_dir",
    "output-dir": "train.output_dir",
    "patience": "train.early_stopping.patience",
    "pretrained": "train.init_checkpoint",
    "seed": "train.seed",
    "weight-decay": "optimizer.weight_decay",
    "weights": "train.init_checkpoint",
    "workers": "dataloader.train.num_workers",
}


def advice(word: str, following: str, known: Sequence[str], takes_overrides: bool) -> str:
    """Return a question with what was meant, such as "did you mean --iou?"; "" if nothing is similar.

    Args:
        word: the option, such as `--lr` or `--train.max_iter=3`.
        following: the next word, which may be its value; "" if there is none.
        known: the command's options.
        takes_overrides: whether the command takes changes of the config, `key=value`.
    """
    name, _, value = word.partition("=")
    value = value or (following if following and not following.startswith("-") and "=" not in following else "VALUE")
    key = name.lstrip("-")
    key = key if "." in key else KEYS.get(key.replace("_", "-").lower(), "")
    if key and takes_overrides:
        return f"keys of the config are given without dashes: {key}={value}"
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""
