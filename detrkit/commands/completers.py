"""Names of configs, and keys and values of a config, for argcomplete."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


def configs(prefix: str) -> list[str]:
    """Return names of configs; files and folders where no name begins so."""
    from argcomplete import FilesCompleter

    from detrkit.config.catalogue import config_files

    names = [name for name in config_files() if name.startswith(prefix)]
    return names or list(FilesCompleter()(prefix))


def overrides(prefix: str, args: argparse.Namespace) -> list[str]:
    """Return the keys of the config on the command line that begin with `prefix`, or the values of one key.

    Groups end in ".", values follow "=". If the line has no config, its name is completed.
    """
    config = getattr(args, "config", None) or getattr(args, "config_file", None)
    if not config:
        return configs(prefix)
    path = Path(config)
    from detrkit.config.load import load_config_file

    try:
        cfg = load_config_file(str(path / "config.yaml") if path.is_dir() else config)
    except Exception:  # a config file is a program; running the command will say what is wrong
        return []
    key, equals, _ = prefix.partition("=")
    return [f"{key}={value}" for value in values(cfg, key)] if equals else list(keys(cfg, prefix))


def keys(cfg: DictConfig, prefix: str) -> Iterator[str]:
    """Yield the keys one level below the last dot of `prefix`: groups with ".", others with "="."""
    from omegaconf import OmegaConf

    from detrkit.config.load import TARGET, call_parameters

    parent = prefix.rpartition(".")[0]
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not OmegaConf.is_dict(node):
        return
    names = {**dict.fromkeys(call_parameters(node.get(TARGET)) if TARGET in node else ()), **dict.fromkeys(node)}
    for name in sorted(map(str, names)):
        if name == TARGET:
            continue
        is_group = name in node and OmegaConf.is_dict(OmegaConf.select(node, name))
        yield f"{parent}{'.' if parent else ''}{name}{'.' if is_group else '='}"


def values(cfg: DictConfig, key: str) -> list[str]:
    """Return the values that a key takes, if they are few; otherwise the present one."""
    from omegaconf import OmegaConf

    now: Any = OmegaConf.select(cfg, key)
    if isinstance(now, bool):
        return ["True", "False"]
    leaf = key.rpartition(".")[2]
    if leaf == "loss_class_type":
        from align_detr.modeling.losses import CLASSIFICATION_LOSSES

        return list(CLASSIFICATION_LOSSES)
    if key in ("train.device", "model.device"):
        return ["auto", "cpu", "cuda", "mps"]
    if key == "train.amp.dtype":
        return ["bfloat16", "float16"]
    return [str(now)] if isinstance(now, int | float | str) else []
