"""Building blocks for configs, found wherever the package was installed."""

import torch
from detectron2.config import LazyConfig
from omegaconf import DictConfig

from ._platform import EMBEDDED_ROOT


def get_config(path: str) -> DictConfig:
    """Load this repository's `configs/<path>`, such as "common/data/tiny_coco.py".

    `detrex.config.get_config` reads the installed detrex's own folder, which lacks what only this project has.
    """
    return LazyConfig.load(str(EMBEDDED_ROOT.parent / "configs" / path))


def get_project_config(path: str) -> DictConfig:
    """Load this repository's `embedded/projects/<path>`, such as "dino/configs/dino_r50_4scale_12ep.py".

    Beside an installed detrex too: its configs differ from release to release, and some of its baselines have another
    backbone or fewer options. So a row is the same model with the same overrides everywhere, of whichever classes are
    installed.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return LazyConfig.load(str(EMBEDDED_ROOT / "projects" / path))


def available_devices() -> list[str]:
    """Kinds of device that PyTorch has here, the fastest first: of cuda, mps and cpu."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, is_there in found.items() if is_there]


def best_device() -> str:
    """The first of `available_devices`."""
    return available_devices()[0]
