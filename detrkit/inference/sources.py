"""Where a detector comes from: the folder of a training, an exported file, or a config and weights."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from detrkit.config.exported import read_exported
from detrkit.config.load import load_config, load_config_file
from detrkit.datasets.classes import Classes, classes_in_checkpoint, classes_of_dataset
from detrkit.runtime.files import LAST_CHECKPOINT
from detrkit.runtime.weight_files import is_name, weights_problem
from detrkit.weights import classes_of_weights, is_of_other_code_base, local_path, look_at, prepare_config, zoo

logger = logging.getLogger(__name__)

ERRORS = "errors.json"  # of a training's folder; see `detrkit.reports.errors`
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin")  # of files that do not hold a config
# Files of weights in the folder of a training, by the names that users give them.
CHECKPOINTS = {"final": "model_final.pth", "best": "model_best.pth"}


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
    which: str | None = None,
) -> Source:
    """Find the detector that `Detector` was given. Its config has the settings that belong to the weights.

    Args:
        which: "best" or "final" checkpoint of a training's folder, see `weights_of_run`.
        overrides: `key=value` that the config was changed by, which are not replaced by these settings.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: these do not make a detector.
    """
    if source is not None and config is not None:
        raise ValueError(f"{source} has a config of its own: give either, not both")
    if which is not None and (source is None or not Path(source).is_dir()):
        raise ValueError(f"which={which!r} chooses a checkpoint of a training's folder, but none is given")
    if source is not None and os.fspath(source).startswith(zoo.PREFIX):
        config, weights, source = zoo.config_of(os.fspath(source)), weights or source, None
    source, weights = source and local_path(source), weights and local_path(weights)
    if weights and Path(weights).is_file() and (problem := weights_problem(weights)):
        raise ValueError(problem)
    if source is not None and Path(source).suffix == ".safetensors":
        exported = read_exported(source)
        if exported is None:
            raise ValueError(f"{source} has weights alone: give their config too, as config= and weights=")
        known = classes_in_file(weights) if weights else None
        return Source(exported.cfg, os.fspath(weights or source), known or exported.classes)
    if source is not None:
        folder = _run_folder(Path(source))
        config, weights = folder / "config.yaml", weights or weights_of_run(folder, which)
    if config is None or weights is None:
        raise ValueError(
            "a detector needs the folder of a training, an exported file, or both config and weights; or zoo:NAME"
        )
    cfg = copy.deepcopy(config) if isinstance(config, DictConfig) else load_config_file(os.fspath(config))
    if prepared := prepare_config(cfg, weights, overrides=overrides):
        prepared.log()
    return Source(cfg, os.fspath(weights), classes_in_file(weights) or classes_of_dataset(cfg))


def stored_threshold(weights: str | os.PathLike) -> float | None:
    """The score threshold that was chosen for weights; None if none was.

    It is in the metadata of an exported file, or in the errors.json of the training's folder that a checkpoint lies in.
    """
    path = Path(local_path(weights))
    if path.suffix == ".safetensors" and path.is_file():
        exported = read_exported(path)
        return exported and exported.score_threshold
    file = path.with_name(ERRORS)
    if not (file.is_file() and path.with_name("config.yaml").is_file()):
        return None
    try:
        value = json.loads(file.read_bytes())["score_threshold"]
    except (ValueError, KeyError, TypeError, RecursionError):
        logger.warning("%s is damaged: `align-detr errors %s` writes it again", file, path.parent)
        return None
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None


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


def describe_own_weights(path: str | os.PathLike) -> list[str]:
    """Return lines with the model, the classes and the score threshold of weights that this project wrote."""
    path = local_path(path)
    exported = read_exported(path) if Path(path).suffix == ".safetensors" else None
    classes, threshold = classes_in_file(path), stored_threshold(path)
    lines = [f"model      {exported.cfg.model._target_}"] if exported else []
    if classes:
        first = ", ".join(classes.names[:5]) + (", ..." if len(classes.names) > 5 else "")
        lines.append(f"classes    {len(classes.names)}: {first}")
    if threshold is not None:
        lines.append(f"threshold  {threshold:.3g}, the default score threshold of Detector and demo")
    return lines


def _run_folder(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no such folder or file: {path}")
    if not path.is_dir():
        if path.suffix in WEIGHT_SUFFIXES:
            one_file = "`align-detr export` makes one file of both"
            raise weights_alone(path, f", by config= and weights=; {one_file}")
        raise ValueError(f"{path} is neither the folder of a training nor an exported file")
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} is not the folder of a training: it has no config.yaml")
    return path


def weights_alone(path: Path, how: str) -> ValueError:
    """The error that a file of weights was given, and nothing says of which model they are; or that it is incomplete.

    Args:
        how: the end of the message, how to give the config too.
    """
    if path.is_file() and (problem := weights_problem(path)):
        return ValueError(problem)
    folder = f" {path.parent}" if (path.parent / "config.yaml").is_file() else ""
    return ValueError(f"{path} holds weights alone: give the folder of its training{folder}, or its config too{how}")


def weights_of_run(folder: Path, which: str | None = None) -> Path:
    """Return the file of weights in the folder of a training, and log its name.

    Args:
        which: "best": the checkpoint that evaluated best; "final": the one at the end of the training, which a training
            that was stopped does not have. None: the final one; of a training that was stopped, the best, else the
            newest.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: `which` is another word, or the file is incomplete, or no file of weights.
    """
    if which is not None and which not in CHECKPOINTS:
        raise ValueError(f"which={which!r} is not one of {', '.join(CHECKPOINTS)}")
    last = folder / LAST_CHECKPOINT
    named = Path(last.read_text(encoding="utf-8", errors="replace").strip()).name if last.is_file() else ""
    names = [CHECKPOINTS[which]] if which else [*CHECKPOINTS.values(), *([named] if named else [])]
    for name in names:
        if (folder / name).is_file():
            if problem := weights_problem(folder / name):
                raise ValueError(f"{problem}{_others(folder, name)}")
            logger.info("Weights: %s%s", folder / name, _others(folder, name))
            return folder / name
    there = [word for word, name in CHECKPOINTS.items() if (folder / name).is_file()]
    if which:
        advice = f"choose {there[0]}" if there else f"leave out the choice for {named}" if named else "train it first"
        reason = ", since its training has not ended" if which == "final" else ""
        raise FileNotFoundError(f"{folder} has no {CHECKPOINTS[which]}{reason}: {advice}")
    raise FileNotFoundError(f"{folder} has no weights yet: no {', no '.join(CHECKPOINTS.values())}, and no checkpoint")


def _others(folder: Path, taken: str) -> str:
    others = [word for word, name in CHECKPOINTS.items() if name != taken and (folder / name).is_file()]
    return f" (there is {CHECKPOINTS[others[0]]} too: choose it by which={others[0]!r})" if others else ""


class Named(NamedTuple):
    """What a command line names.

    Attributes:
        config: name or path of a config, which may be an exported file or `zoo:NAME`: see `load_named_config`.
        weights: a file, a URL or `zoo:NAME`; "" if none is named.
        folder: the folder of a training, if one was named.
    """

    config: str
    weights: str
    folder: Path | None = None


def find_named(source: str, checkpoint: str | None = None, which: str | None = None) -> Named:
    """Find config and weights of what a user names on a command line.

    Args:
        source: a config, the folder of a training, an exported file, or `zoo:NAME`; "" if there is only `checkpoint`.
        checkpoint: weights; alone, it may be what `source` may be.
        which: as in `weights_of_run`.

    Raises:
        FileNotFoundError: a folder or file is not there.
        ValueError: no weights can be chosen by `which`.
    """
    if checkpoint and Path(checkpoint).is_dir():
        folder = _run_folder(Path(checkpoint))
        return Named(source or str(folder / "config.yaml"), str(weights_of_run(folder, which)), folder)
    if source and Path(source).is_dir():
        folder = _run_folder(Path(source))
        return Named(str(folder / "config.yaml"), checkpoint or str(weights_of_run(folder, which)), folder)
    if which is not None:
        raise ValueError(f"--which {which} chooses a checkpoint of a training's folder, but none is given")
    only = source or checkpoint or ""
    is_file = is_name(only) or Path(only).suffix in (".safetensors", ".onnx", ".xml")
    if not is_file and Path(only).suffix in WEIGHT_SUFFIXES:
        raise weights_alone(Path(only), f": `CONFIG --checkpoint {only}`")
    return Named(source or checkpoint or "", checkpoint or (source if is_file else ""))


def load_named_config(config: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load the config that a command line names: by name or path, of an exported file, or of `zoo:NAME`.

    Raises:
        FileNotFoundError, ValueError: see `load_config` and `zoo.config_of`.
    """
    if config.startswith(zoo.PREFIX):
        return zoo.config_of(config, overrides)
    if is_name(config):
        raise ValueError(f"{config} is a file of weights: give the config of its model too")
    return load_config(config, overrides)
