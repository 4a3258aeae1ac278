"""The formats that are known: each module of this folder is one, and has it as `FORMAT`."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from ..format import Format


@cache
def all_formats() -> dict[str, Format]:
    """Every format by its name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {module.FORMAT.name: module.FORMAT for module in modules}


def recognise(names: Collection[str]) -> Format | None:
    """The format of a state dict with these names; None if it is none of them, such as detrex's.

    Raises:
        ValueError: several formats claim it.
    """
    names = set(names)
    found = [known for known in all_formats().values() if known.recognises(names)]
    if len(found) > 1:
        raise ValueError(f"these weights could be {' or '.join(known.title for known in found)}")
    return found[0] if found else None
