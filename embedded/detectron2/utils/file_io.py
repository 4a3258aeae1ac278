"""Paths as users write them: local files, `http(s)://` and detectron2's model zoo under `detectron2://`."""

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as IoPathManager

__all__ = ["PathManager"]


class ModelZooHandler(PathHandler):
    """Reads `detectron2://X` from the public model zoo, through the cache that downloads go to."""

    PREFIX = "detectron2://"
    URL = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        url = self.URL + path.removeprefix(self.PREFIX)
        return PathManager.get_local_path(url, force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


PathManager = IoPathManager()
PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(ModelZooHandler())
