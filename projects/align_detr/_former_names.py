"""Module names that configs written by former versions import: each stands for where its contents are now."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

FORMER_NAMES = {
    "align_detr.commands": "detrkit.commands",
    "align_detr.commands.command_line": "detrkit.config.load",
    "align_detr.config": "detrkit.config.load",
    "align_detr.data": "detrkit.datasets",
}


class _FormerModule(ModuleType):
    """Imports the module of the new name when an attribute is asked for, since that takes seconds."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(FORMER_NAMES[self.__name__]), name)


def register() -> None:
    """Make the former names importable."""
    for name in FORMER_NAMES:
        sys.modules.setdefault(name, _FormerModule(name))
