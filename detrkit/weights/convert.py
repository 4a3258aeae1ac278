"""From a file of weights, of whatever format, to a state dict for a model of detrex's names."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from torch import Tensor

from .class_heads import ClassFit, fit_class_heads, num_classes
from .classes import file_classes
from .files import WeightsFile, read
from .format import Format
from .formats import recognise
from .settings import NUM_CLASSES, apply_settings, check_detector, listed
from .tables import State, Trace

logger = logging.getLogger(__name__)

TRAINING_PART = "collaboration."
SETTINGS = "checkpoint_settings"
"""Where our own checkpoints keep the settings of the weights that their training began with."""

NOT_OURS = (".pkl",)
"""Endings of files that are left to detectron2: backbones of its model zoo."""

NOT_FILES = ("torchvision://", "detectron2://", "catalog://")


@dataclass(frozen=True)
class Recognised:
    """A file of weights and its format.

    Attributes:
        file: its tensors are on the device "meta" if only its header was read.
        format: None: detrex's names, or unknown ones.
        classes: the names of the classes of its class heads, if they are known.
        settings: config keys and the values that the weights were trained with.
    """

    file: WeightsFile
    format: Format | None
    classes: list[str] | None
    settings: dict[str, Any]

    @property
    def source(self) -> str:
        """The file and its format, for messages."""
        return f"{self.file.path.name} ({self.format.title})" if self.format else self.file.path.name


@dataclass(frozen=True)
class Conversion:
    """A converted file.

    Attributes:
        recognised: the file; with its format.
        state: its weights under detrex's names.
        trace: what happened to its tensors.
    """

    recognised: Recognised
    state: State
    trace: Trace


def look_at(path: str | os.PathLike, data: bool = False) -> Recognised:
    """Read a file of weights, its header alone unless `data` is asked for, and recognise its format.

    Raises:
        FileNotFoundError, ValueError, OSError: see `files.read`.
        ValueError: several formats claim the file, or it cannot be used.
    """
    file = read(path, data)
    known = recognise(file.state)
    if known is None:
        return Recognised(file, None, _classes(file), _kept_settings(file))
    if known.refusal:
        raise ValueError(f"{file.path} cannot be used: {known.refusal}")
    settings = known.settings(file)
    return Recognised(file, known, file_classes(file, settings[NUM_CLASSES]), settings)


def _kept_settings(file: WeightsFile) -> dict[str, Any]:
    return {**file.extra_dict(SETTINGS), **_facts(file).get(SETTINGS, {})}


def _facts(file: WeightsFile) -> Mapping[str, Any]:
    """What our own trainings leave in their checkpoints."""
    node: Any = file.extra
    for key in ("trainer", "hooks", "RunState", "facts"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _classes(file: WeightsFile) -> list[str] | None:
    kept = _facts(file).get("classes")
    count = num_classes(file.state)
    if isinstance(kept, list) and all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in kept):
        names = [str(name) for _, name in kept]
        return names if len(names) == count else None
    return None if count is None else file_classes(file, count)


def convert(recognised: Recognised) -> Conversion:
    """The weights of a file under detrex's names.

    Raises:
        ValueError: the file contradicts itself; or its format cannot be converted.
    """
    known = recognised.format
    if known is None:
        return Conversion(recognised, dict(recognised.file.state), Trace())
    try:
        state, trace = known.to_ours(recognised.file.state)
    except ValueError as error:
        raise ValueError(f"{recognised.file.path}: {error}") from error
    return Conversion(recognised, state, trace)


def local_file(checkpoint: str) -> Path | None:
    """The file of a checkpoint on this machine, downloaded if it is a URL; None for what is left to detectron2, for no
    checkpoint, and for a file that is not there."""
    if not checkpoint or checkpoint.startswith(NOT_FILES) or checkpoint.endswith(NOT_OURS):
        return None
    try:
        path = Path(PathManager.get_local_path(checkpoint))
    except OSError:  # for whoever loads it to explain
        return None
    return path if path.is_file() and path.suffix not in NOT_OURS else None


def prepare_config(
    cfg: DictConfig, checkpoint: str, *, overrides: Sequence[str] = (), for_training: bool = False
) -> Recognised | None:
    """Set in a config, before its model is built, what the weights of a checkpoint were trained with.

    Args:
        cfg: with `model` and `train`; changed in place.
        checkpoint: a file or URL, as in `train.init_checkpoint`.
        overrides: `key=value` that the user gave, which are not replaced; see `settings.apply_settings`.
        for_training: the model keeps its number of classes; see `load_state`.

    Returns:
        What the checkpoint is; None if it is left to detectron2.

    Raises:
        ValueError: the weights are of another kind of detector, or a setting cannot be made.
    """
    path = local_file(checkpoint)
    if path is None:
        return None
    try:
        recognised = look_at(path)
    except ValueError:
        if _is_recognised(path):
            raise
        return None  # for whoever loads it to say what is wrong with it
    if recognised.format is not None:
        check_detector(cfg, recognised.format, recognised.source)
    requirements = recognised.format.requirements(recognised.file) if recognised.format else None
    changes = apply_settings(
        cfg,
        recognised.settings,
        recognised.source,
        must_be=requirements.must_be if requirements else None,
        overrides=overrides,
        for_training=for_training,
    )
    if changes:
        logger.info("Set for the weights of %s: %s", recognised.source, listed(changes))
    for note in requirements.notes if requirements else ():
        logger.info("Note on the weights of %s: %s", recognised.source, note)
    return recognised


def _is_recognised(path: Path) -> bool:
    try:
        return recognise(read(path, data=False).state) is not None
    except ValueError:
        return False


def load_state(
    path: str | os.PathLike, model_state: Mapping[str, Tensor], classes: Sequence[str] | None = None
) -> tuple[State, Any] | None:
    """The weights of a file of another code base, for a model.

    Args:
        model_state: the model's state dict, whose values stay where the file has none.
        classes: the names of the model's classes, to pick class rows by; None: as they are.

    Returns:
        A state dict, and a `report.Report`; None if the file is not of another code base's format.
    """
    from .report import Report

    try:
        if recognise(read(path, data=False).state) is None:
            return None
    except (ValueError, OSError):
        return None  # for the caller's own reader to explain
    conversion = convert(look_at(path, data=True))
    state = dict(conversion.state)
    if not any(name.startswith(TRAINING_PART) for name in model_state):
        for name in [name for name in state if name.startswith(TRAINING_PART)]:
            del state[name]
            conversion.trace.dropped[name] = "auxiliary head, which this model does not have"
    fit = ClassFit()
    if classes is not None:
        state, fit = fit_class_heads(state, model_state, classes, conversion.recognised.classes)
    return state, Report(conversion.recognised, conversion.trace, fit)
