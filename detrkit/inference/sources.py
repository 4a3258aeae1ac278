"""Where a detector comes from: the folder of a training, an exported file, or a config and weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from detrkit.config.exported import read_exported
from detrkit.config.load import load_config, load_config_file
from detrkit.datasets.classes import Classes, classes_in_checkpoint, classes_of_dataset
from detrkit.weights import classes_of_weights, is_name, is_of_other_code_base, local_path, look_at, prepare_config, zoo

WEIGHTS = ("model_final.pth", "model_best.pth")
LAST = "last_checkpoint"


class Source(NamedTuple):
    """A config, a file of weights, and the classes if they are known."""

    cfg: DictConfig
    weights: str
    classes: Classes | None


def find_source(
    source: str | os.PathLike | None,
    config: str | os.PathLike | DictConfig | None = None,
    weights: str | os.PathLike | None = None,
    overrides: Sequence[str] = (),
) -> Source:
    """What `Detector` was given. Its config has the settings that belong to the weights.

    Args:
        overrides: `key=value` that the config was changed by, which are not replaced by these settings.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: these do not make a detector.
    """
    if source is not None and config is not None:
        raise ValueError(f"{source} has a config of its own: give either, not both")
    if source is not None and os.fspath(source).startswith(zoo.PREFIX):
        config, weights, source = zoo.config_of(os.fspath(source)), weights or source, None
    source, weights = source and local_path(source), weights and local_path(weights)
    if source is not None and Path(source).suffix == ".safetensors":
        exported = read_exported(source)
        if exported is None:
            raise ValueError(f"{source} has weights alone: give their config too, as config= and weights=")
        known = classes_in_file(weights) if weights else None
        return Source(exported.cfg, os.fspath(weights or source), known or exported.classes)
    if source is not None:
        folder = _run_folder(Path(source))
        config, weights = folder / "config.yaml", weights or _weights_of_run(folder)
    if config is None or weights is None:
        raise ValueError(
            "a detector needs the folder of a training, an exported file, or both config and weights; or zoo:NAME"
        )
    cfg = copy.deepcopy(config) if isinstance(config, DictConfig) else load_config_file(os.fspath(config))
    if prepared := prepare_config(cfg, weights, overrides=overrides):
        prepared.log()
    return Source(cfg, os.fspath(weights), classes_in_file(weights) or classes_of_dataset(cfg))


def config_for(config_file: str | None, checkpoint: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a checkpoint: the one given, else that of `zoo:NAME` or of an exported file.

    Raises:
        FileNotFoundError, ValueError: see `load_config`.
    """
    if not config_file and checkpoint.startswith(zoo.PREFIX):
        return zoo.config_of(checkpoint, overrides)
    if not config_file and is_name(checkpoint):
        raise ValueError(f"{checkpoint} is a file of weights: give the config of their model too")
    return load_config(config_file or checkpoint, overrides)


def classes_in_file(path: str | os.PathLike) -> Classes | None:
    """The classes that a checkpoint or an exported file knows; None if it knows none."""
    path = local_path(path)
    if is_of_other_code_base(path):
        found = look_at(path)
        return classes_of_weights(path) or Classes.numbered(found.settings["model.num_classes"])
    if Path(path).suffix != ".safetensors":
        return classes_in_checkpoint(path)
    exported = read_exported(path)
    return exported and exported.classes


def _run_folder(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no such folder or file: {path}")
    if not path.is_dir():
        raise ValueError(f"{path} is neither the folder of a training nor an exported file: weights need a config too")
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} is not the folder of a training: it has no config.yaml")
    return path


def _weights_of_run(folder: Path) -> Path:
    """The weights that a training is judged by: its last, else its best, else those that it has got to."""
    last = folder / LAST
    named = Path(last.read_text(encoding="utf-8", errors="replace").strip()).name if last.is_file() else ""
    for name in (*WEIGHTS, *([named] if named else [])):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no weights as yet: neither {' nor '.join(WEIGHTS)} nor a checkpoint")
