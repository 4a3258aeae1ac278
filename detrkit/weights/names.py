"""Names that stand for files of weights: `zoo:NAME` and `hf://org/name/file`, also for detectron2's PathManager."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from detrkit.runtime.weight_files import is_name, is_remote

from . import hub, zoo

__all__ = ["NameHandler", "is_name", "is_remote", "local_path"]

GETTERS = {zoo.PREFIX: zoo.get, hub.PREFIX: hub.get}


def local_path(checkpoint: str | os.PathLike) -> str:
    """The path of the file that a name stands for, downloaded if it is not there; anything else as it is.

    Raises:
        ValueError: there is no such name.
        OSError: the file cannot be downloaded.
    """
    text = os.fspath(checkpoint)
    getter = next((getter for prefix, getter in GETTERS.items() if text.startswith(prefix)), None)
    return str(getter(text)) if getter else text


class NameHandler(PathHandler):
    """Reads names through detectron2's PathManager, as checkpointers do."""

    def _get_supported_prefixes(self) -> list[str]:
        return list(GETTERS)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return local_path(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any):
        return Path(local_path(path)).open(mode, buffering)


PathManager.register_handler(NameHandler(), allow_override=True)
