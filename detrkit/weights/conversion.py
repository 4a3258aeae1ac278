"""From a file of weights, of whatever format, to a state dict of detrex's names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .classes import assumed_classes, named_classes
from .files import WeightsFile, read
from .format import Format
from .formats import recognise
from .settings import NUM_CLASSES
from .tables import State, Trace

SETTINGS = "checkpoint_settings"
"""Where our own checkpoints keep the settings of the weights that their training began with."""


@dataclass(frozen=True)
class Recognised:
    """A file of weights and its format.

    Attributes:
        file: its tensors are on the device "meta" if only its header was read.
        format: None: detrex's names, or unknown ones.
        classes: the names of the classes of its class heads, if they are known.
        assumed: they were guessed from their number, as the file does not name them.
        settings: config keys and the values that the weights were trained with.
    """

    file: WeightsFile
    format: Format | None
    classes: list[str] | None
    assumed: bool
    settings: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """What is known of the config that the weights were trained with, by key: of our own trainings all of it."""
        kept = _facts(self.file).get("config")
        return {**(kept if isinstance(kept, dict) else {}), **self.settings}

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
        return Recognised(file, None, *_classes(file), _kept_settings(file))
    if known.refusal:
        raise ValueError(f"{file.path} cannot be used: {known.refusal}")
    settings = known.settings(file)
    rows = settings.get(NUM_CLASSES)
    if rows is None:  # a backbone alone
        return Recognised(file, known, None, False, settings)
    names = named_classes(file, rows)
    return Recognised(file, known, names or assumed_classes(rows), names is None, settings)


def num_classes(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes that a state dict of detrex's names has rows for; None if it has no class head."""
    for name in ("class_embed.0.weight", "class_embed.weight"):
        if name in state:
            return len(state[name])
    return None


def _kept_settings(file: WeightsFile) -> dict[str, Any]:
    return {**file.extra_dict(SETTINGS), **_facts(file).get(SETTINGS, {})}


def _facts(file: WeightsFile) -> Mapping[str, Any]:
    """What our own trainings leave in their checkpoints."""
    node: Any = file.extra
    for key in ("trainer", "hooks", "RunState", "facts"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _classes(file: WeightsFile) -> tuple[list[str] | None, bool]:
    """The classes of a file with detrex's names, and whether they are assumed."""
    count = num_classes(file.state)
    kept = _facts(file).get("classes")
    if isinstance(kept, list) and all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in kept):
        names = [str(name) for _, name in kept]
        return (names, False) if len(names) == count else (None, False)
    return (None, True) if count is None else (assumed_classes(count), True)


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
