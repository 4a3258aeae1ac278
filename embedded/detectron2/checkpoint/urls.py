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
    """Download `torchvision://resnet50` (also 18, 34, 101): `IMAGENET1K_V1` weights from PyTorch's server.

    Raises:
        ValueError: the name is unknown.
        OSError: the download does not have the SHA-256 whose first digits are in the file's name.
    """

    PREFIX = "torchvision://"
    URL = "https://download.pytorch.org/models/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path.removeprefix(self.PREFIX)
        if name not in _FILES:
            known = ", ".join(self.PREFIX + known for known in _FILES)
            raise ValueError(f"unknown weights {path}: choose one of {known}")
        local = PathManager.get_local_path(self.URL + _FILES[name], force=force, **kwargs)
        checksum = hashlib.sha256(Path(local).read_bytes()).hexdigest()
        if not checksum.startswith(_FILES[name].removesuffix(".pth").partition("-")[2]):
            os.unlink(local)
            raise OSError("the downloaded file is damaged")
        return local

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


PathManager.register_handler(TorchvisionHandler())


def local_file(path: str) -> str:
    """Return a local file for a path or URL; downloads are cached.

    Raises:
        FileNotFoundError: no such file.
        OSError: the download failed.
        ValueError: the name is unknown.
    """
    try:
        local = PathManager.get_local_path(path)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise OSError(
            f"cannot download {path} ({reason}): fetch {_url(path)} elsewhere, and use the path of that file instead"
        ) from error
    if not os.path.isfile(local):
        raise FileNotFoundError(f"no such checkpoint: {path}")
    return local


def _url(path: str) -> str:
    """Return the URL for a browser."""
    if path.startswith(TorchvisionHandler.PREFIX):
        return TorchvisionHandler.URL + _FILES[path.removeprefix(TorchvisionHandler.PREFIX)]
    return path.replace(ModelZooHandler.PREFIX, ModelZooHandler.URL, 1)
