"""Weights for a model of a config: the settings that belong to them, and the state dict."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from torch import Tensor

from .class_heads import ClassFit, fit_class_heads
from .convert import Recognised, convert, look_at
from .files import read
from .formats import recognise
from .report import Report
from .settings import apply_settings, check_detector, listed
from .tables import State

logger = logging.getLogger(__name__)

TRAINING_PART = "collaboration."

NOT_OURS = (".pkl",)
"""Endings of files that are left to detectron2: backbones of its model zoo."""

NOT_FILES = ("torchvision://", "detectron2://", "catalog://")


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
) -> tuple[State, Report] | None:
    """The weights of a file of another code base, for a model.

    Args:
        model_state: the model's state dict, whose values stay where the file has none.
        classes: the names of the model's classes, to pick class rows by; None: as they are.

    Returns:
        A state dict, and what happened to it; None if the file is not of another code base's format.
    """
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
