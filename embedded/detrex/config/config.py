"""Looking up shared config files, and keys that a config may lack."""

from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

CONFIG_ROOT = Path(__file__).resolve().parents[3] / "configs"


def get_config(config_path: str) -> DictConfig:
    """Loads a shared config file, freshly on each call: `get_config("common/train.py").train`.

    Args:
        config_path: relative to the folder `configs/` beside the folder that the `detrex` package lies in.

    Raises:
        FileNotFoundError: no such file; the message lists the existing ones.
    """
    path = CONFIG_ROOT / config_path
    if not path.is_file():
        known = sorted(file.relative_to(CONFIG_ROOT).as_posix() for file in CONFIG_ROOT.glob("common/**/*.py"))
        raise FileNotFoundError(f"no config {config_path!r} in {CONFIG_ROOT}; there are: {', '.join(known) or 'none'}")
    return LazyConfig.load(str(path))


def try_get_key(cfg: DictConfig, *keys: str, default: Any = None) -> Any:
    """The value of the first of the dotted `keys` that the config has, or `default`."""
    absent = object()
    values = (OmegaConf.select(cfg, key, default=absent) for key in keys)
    return next((value for value in values if value is not absent), default)
