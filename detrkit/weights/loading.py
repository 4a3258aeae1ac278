"""Weights for the model of a config: the settings that belong to them, and their state dict."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from torch import Tensor

from detrkit.datasets.classes import Classes

from .classes import as_classes
from .conversion import Recognised, convert, look_at
from .files import read
from .formats import recognise
from .names import is_name, local_path
from .report import Report
from .settings import NUM_CLASSES, Change, apply_settings, check_detector, listed
from .tables import State

logger = logging.getLogger(__name__)

TRAINING_PART = "collaboration."

NOT_OURS = (".pkl",)
"""Endings of files that are left to detectron2: backbones of its model zoo."""

NOT_FILES = ("torchvision://", "detectron2://", "catalog://")


@dataclass(frozen=True)
class Prepared:
    """A checkpoint, and what was set in a config for its weights.

    Attributes:
        recognised: the checkpoint, without its numbers.
        changes: of the config.
    """

    recognised: Recognised
    changes: list[Change]

    def log(self) -> None:
        """Say in the log what was set, and how the weights were evaluated elsewhere."""
        known, source = self.recognised.format, self.recognised.source
        if self.changes:
            logger.info("Set for the weights of %s: %s", source, listed(self.changes))
        for note in known.requirements(self.recognised.file).notes if known else ():
            logger.info("Note on the weights of %s: %s", source, note)

    def kept_settings(self) -> dict:
        """Settings for the checkpoints of a training that begins with these weights."""
        return {key: value for key, value in self.recognised.settings.items() if key != NUM_CLASSES}


def local_file(checkpoint: str) -> Path | None:
    """The file of a checkpoint on this machine, downloaded if it is a URL or a name; None for what is left to
    detectron2, for no checkpoint, and for a file that is not there.

    Raises:
        ValueError, OSError: it is a name that stands for no file, or whose file cannot be downloaded.
    """
    if is_name(checkpoint):
        return Path(local_path(checkpoint))
    if not checkpoint or checkpoint.startswith(NOT_FILES) or checkpoint.endswith(NOT_OURS):
        return None
    try:
        path = Path(PathManager.get_local_path(checkpoint))
    except OSError:  # for whoever loads it to explain
        return None
    return path if path.is_file() and path.suffix not in NOT_OURS else None


def prepare_config(
    cfg: DictConfig, checkpoint: str | os.PathLike, *, overrides: Sequence[str] = (), for_training: bool = False
) -> Prepared | None:
    """Set in a config, before its model is built, what the weights of a checkpoint were trained with.

    Args:
        cfg: with `model` and `train`; changed in place.
        checkpoint: a file or URL, as in `train.init_checkpoint`.
        overrides: `key=value` that the user gave, which are not replaced; see `settings.apply_settings`.
        for_training: the model keeps its number of classes; see `load_state`.

    Returns:
        What the checkpoint is, and what was set; None if it is left to detectron2.

    Raises:
        ValueError: the weights are of another kind of detector, or a setting cannot be made.
    """
    path = local_file(os.fspath(checkpoint))
    if path is None:
        return None
    try:
        recognised = look_at(path)
    except ValueError:
        if is_of_other_code_base(path):
            raise
        return None  # for whoever loads it to say what is wrong with it
    must_be = {}
    if recognised.format is not None:
        if recognised.format.detector:
            check_detector(cfg, recognised.format, recognised.source)
        must_be = recognised.format.requirements(recognised.file).must_be
    changes = apply_settings(
        cfg,
        recognised.settings,
        recognised.source,
        must_be=must_be,
        overrides=overrides,
        for_training=for_training,
    )
    return Prepared(recognised, changes)


def is_of_other_code_base(path: str | os.PathLike) -> bool:
    """Whether a file is of a known format of another code base."""
    try:
        return recognise(read(path, data=False).state) is not None
    except (ValueError, OSError):
        return False


def load_state(path: str | os.PathLike, model_state: Mapping[str, Tensor]) -> tuple[State, Report] | None:
    """The weights of a file of another code base, for a model.

    Args:
        model_state: the model's state dict; parts of the file that only training needs are left out if the model has
            none of them.

    Returns:
        A state dict of detrex's names, and what happened to the file's; None if it is not of another code base.

    Raises:
        ValueError: the file is of a known format, but cannot be used.
    """
    if not is_of_other_code_base(path):
        return None
    conversion = convert(look_at(path, data=True))
    state = conversion.state
    if not any(name.startswith(TRAINING_PART) for name in model_state):
        unused = [name for name in state if name.startswith(TRAINING_PART)]
        conversion.trace.dropped.update(dict.fromkeys(unused, "auxiliary head, which this model does not have"))
        state = {name: tensor for name, tensor in state.items() if name not in unused}
    return state, Report(conversion.recognised, conversion.trace)


def classes_of_weights(
    path: str | os.PathLike, data: Sequence[str] | None = None, of_detrex: bool = False
) -> Classes | None:
    """The classes that weights of another code base are for; None if they are not known, and for other files.

    A file that names none is taken to be COCO's if it has 80 or 91 rows.

    Args:
        data: the classes of the data to use it with. Where these are as many, but not all COCO's, so are the file's.
        of_detrex: the same of files with detrex's names.
    """
    try:
        found = look_at(path)
    except (ValueError, OSError):
        return None
    if found.classes is None or (found.format is None and not of_detrex):
        return None
    if found.assumed and data is not None and len(data) == len(found.classes) and not set(data) <= set(found.classes):
        return None
    return as_classes(found.classes)
