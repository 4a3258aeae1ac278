"""Building blocks for configs, found wherever the package was installed."""

from pathlib import Path

import projects
from detectron2.config import LazyConfig
from omegaconf import DictConfig

from ._platform import EMBEDDED_ROOT


def get_config(path: str) -> DictConfig:
    """Load this repository's `configs/<path>`, such as "common/data/tiny_coco.py".

    `detrex.config.get_config` reads the installed detrex's own folder, which lacks what only this project has.
    """
    return LazyConfig.load(str(EMBEDDED_ROOT.parent / "configs" / path))


def get_project_config(path: str) -> DictConfig:
    """Load `projects/<path>`, such as "dino/configs/models/dino_r50.py", from where `projects.*` is imported from.

    With a real detrex that is its checkout; a file it does not have comes from the embedded engine.

    Raises:
        FileNotFoundError: no folder of the `projects` namespace has the file.
    """
    folders = [Path(folder) for folder in projects.__path__]
    for folder in folders:
        if (folder / path).is_file():
            return LazyConfig.load(str(folder / path))
    raise FileNotFoundError(f"no config projects/{path} in {', '.join(map(str, folders))}")
