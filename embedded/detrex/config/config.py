"""Load shared config files, and read optional keys."""

from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

CONFIG_ROOT = Path(__file__).resolve().parents[3] / "configs"


def get_config(config_path: str) -> DictConfig:
    """Load a shared config file, anew on each call: `get_config("common/train.py").train`.

    Args:
        config_path: relative to the folder `configs/`, two levels above the `detrex` package.

    Raises:
        FileNotFoundError: no such file; the message lists the existing files.
    """
    path = CONFIG_ROOT / config_path
    if not path.is_file():
        existing = sorted(file.relative_to(CONFIG_ROOT).as_posix() for file in CONFIG_ROOT.glob("common/**/*.py"))
        raise FileNotFoundError(f"no config {config_path!r} in {CONFIG_ROOT}; it has: {', '.join(existing) or 'none'}")
    return LazyConfig.load(str(path))


def try_get_key(cfg: DictConfig, *keys: str, default: Any = None) -> Any:
    """Return the value of the first of the dotted `keys` that the config has, else `default`."""
    absent = object()
    values = (OmegaConf.select(cfg, key, default=absent) for key in keys)
    return next((value for value in values if value is not absent), default)
