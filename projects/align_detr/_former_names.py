"""Former module names, which configs of earlier versions import, and the modules that replace them."""

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
    """Import the new module on first attribute access, because the import takes seconds."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(FORMER_NAMES[self.__name__]), name)


def register() -> None:
    """Make the former names importable."""
    for name in FORMER_NAMES:
        sys.modules.setdefault(name, _FormerModule(name))
