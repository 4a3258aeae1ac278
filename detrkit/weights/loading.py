"""Weights for the model of a config: the settings that belong to them, and their state dict."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from torch import Tensor, nn

from detrkit.datasets.classes import Classes

from .class_heads import ClassFit, fit_class_heads
from .classes import as_classes, match_classes, report_as
from .convert import Recognised, convert, look_at
from .files import read
from .formats import recognise
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

    def report_classes_of(self, model: nn.Module, names: Sequence[str]) -> None:
        """Make a detector with these weights report its detections as the classes of a dataset, by name.

        Raises:
            ValueError: weights of another code base know none of the dataset's classes.
        """
        found = self.recognised
        rows = match_classes(names, found.classes, found.assumed)
        if rows is None or (found.format is None and found.assumed):
            return
        if not any(row is not None for row in rows):
            if found.format is None:
                return
            raise ValueError(
                f"{found.source} knows none of the classes of the data, such as {names[0]}: fine-tune it before it is "
                "evaluated on them"
            )
        report_as(model, rows, len(found.classes))
        missing = [name for name, row in zip(names, rows, strict=True) if row is None]
        if missing:
            logger.warning("%s does not know %s of the data", found.source, ", ".join(missing))


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
        if _is_recognised(path):
            raise
        return None  # for whoever loads it to say what is wrong with it
    must_be = {}
    if recognised.format is not None:
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

    Raises:
        ValueError: the file is of such a format, but cannot be used.
    """
    if not _is_recognised(Path(path)):
        return None
    conversion = convert(look_at(path, data=True))
    found, state = conversion.recognised, conversion.state
    if not any(name.startswith(TRAINING_PART) for name in model_state):
        unused = [name for name in state if name.startswith(TRAINING_PART)]
        conversion.trace.dropped.update(dict.fromkeys(unused, "auxiliary head, which this model does not have"))
        state = {name: tensor for name, tensor in state.items() if name not in unused}
    fit = ClassFit()
    if classes is not None:
        state, fit = fit_class_heads(state, model_state, classes, found.classes, found.assumed)
    return state, Report(found, conversion.trace, fit)


def fit_classes(
    path: str | os.PathLike, state: Mapping[str, Tensor], model_state: Mapping[str, Tensor], classes: Sequence[str]
) -> State:
    """The state dict of a file with detrex's names, with its class rows picked by name; see `fit_class_heads`."""
    try:
        found = look_at(path)
    except ValueError:
        return dict(state)
    fitted, fit = fit_class_heads(state, model_state, classes, found.classes, found.assumed)
    if str(fit):
        logger.info("%s: %s", found.source, fit)
    return fitted


def classes_of_weights(path: str | os.PathLike) -> Classes | None:
    """The classes that the weights of another code base are for, numbered if the file does not name them; None for
    other files."""
    try:
        found = look_at(path)
    except (ValueError, OSError):
        return None
    if found.format is None:
        return None
    return as_classes(found.classes) if found.classes else Classes.numbered(found.settings[NUM_CLASSES])
