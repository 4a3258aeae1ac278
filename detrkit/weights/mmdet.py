"""What mmdetection's files have in common: the config as text in `meta`, and how a file is laid out."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from .files import WeightsFile
from .tables import State

_POSITION = re.compile(r"positional_encoding=dict\(([^()]*)\)")
_ARGUMENT = re.compile(r"(temperature|offset)=([-+.\w]+)")


def position(file: WeightsFile, default: tuple[float, float]) -> tuple[float, float]:
    """Temperature and offset of the encoder's position embedding.

    The text of the config in the file's `meta` counts, where there is one: arguments it leaves out are mmdetection's
    defaults. Otherwise `default`.
    """
    text = file.extra_dict("meta").get("cfg")
    found = _POSITION.search(text) if isinstance(text, str) else None
    if found is None:
        return default
    given = {name: ast.literal_eval(value) for name, value in _ARGUMENT.findall(found[1])}
    return given.get("temperature", 10000), float(given.get("offset", 0.0))


def layout(state: State, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A file that mmdetection loads, with the names of the classes if they are known."""
    names = facts.get("classes")
    return {"meta": {"dataset_meta": {"classes": tuple(names)}} if names else {}, "state_dict": state}
