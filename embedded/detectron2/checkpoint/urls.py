"""Weights by name: files, URLs, detectron2's model zoo and torchvision's ResNets."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from detectron2.utils.file_io import ModelZooHandler, PathManager
from iopath.common.file_io import PathHandler

_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}


class TorchvisionHandler(PathHandler):
    """Reads `torchvision://resnet50`, and 18, 34 and 101: the `IMAGENET1K_V1` weights, from PyTorch's server.

    Raises:
        ValueError: another name.
        OSError: what came is not the file, whose name ends in the first digits of its SHA-256.
    """

    PREFIX = "torchvision://"
    URL = "https://download.pytorch.org/models/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path.removeprefix(self.PREFIX)
        if name not in _FILES:
            known = ", ".join(self.PREFIX + known for known in _FILES)
            raise ValueError(f"there is no {path}; there are {known}")
        local = PathManager.get_local_path(self.URL + _FILES[name], force=force, **kwargs)
        checksum = hashlib.sha256(Path(local).read_bytes()).hexdigest()
        if not checksum.startswith(_FILES[name].removesuffix(".pth").partition("-")[2]):
            os.unlink(local)
            raise OSError("what came is another file, or a damaged one")
        return local

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


PathManager.register_handler(TorchvisionHandler())


def local_file(path: str) -> str:
    """A file on this machine that has what `path` names: itself, or a download, which is kept for the next time.

    Raises:
        FileNotFoundError: no such file.
        OSError: the download failed.
        ValueError: there is no such name.
    """
    try:
        local = PathManager.get_local_path(path)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise OSError(
            f"cannot download {path} ({reason}): fetch {_url(path)} elsewhere, and give the file's path in its place"
        ) from error
    if not os.path.isfile(local):
        raise FileNotFoundError(f"no such checkpoint: {path}")
    return local


def _url(path: str) -> str:
    """Where a browser finds it."""
    if path.startswith(TorchvisionHandler.PREFIX):
        return TorchvisionHandler.URL + _FILES[path.removeprefix(TorchvisionHandler.PREFIX)]
    return path.replace(ModelZooHandler.PREFIX, ModelZooHandler.URL, 1)
