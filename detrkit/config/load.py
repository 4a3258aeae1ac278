"""Load configs by name or path, from a checkout or an installed package."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from .catalogue import CONFIGS, find_config
from .safe_yaml import load_yaml


def get_config(path: str) -> DictConfig:
    """Load this repository's `configs/<path>`, such as "baselines/dino_r50_4scale_12ep.py".

    `detrex.config.get_config` reads the folder of the installed detrex, whose configs differ from release to release.
    A row built on this one is the same model with the same keys on every platform.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return LazyConfig.load(str(CONFIGS / path))


def get_project_config(path: str) -> DictConfig:
    """Load a baseline by its former path, "dino/configs/dino_tiny.py": configs of users name it so."""
    return get_config(f"baselines/{path.partition('/configs/')[2]}")


def load_config_file(path: str) -> DictConfig:
    """The config of that name or in a `.py` file, which is run; or in a `.yaml` or an exported `.safetensors`, not run.

    Raises:
        FileNotFoundError: no such file; the message has the names that are near.
        ValueError: it is no config, or ends in an error, which is told with its line.
    """
    if not path:
        raise ValueError("no config: give one by --config-file")
    path = str(find_config(path))
    if Path(path).suffix in (".yaml", ".yml"):
        # Their import takes longer than most of what needs no data.
        from detrkit.datasets.registration import register_own_datasets, register_saved

        register_own_datasets()
        cfg = load_yaml(path)
        datasets = cfg.get("datasets") or {}
        if not isinstance(datasets, DictConfig | dict) or not all(isinstance(d, DictConfig) for d in datasets.values()):
            raise ValueError(f"{path}: datasets is not a mapping of names to json_file and image_root")
        register_saved(datasets)
        return cfg
    if Path(path).suffix == ".safetensors":
        from detrkit.config.exported import read_exported  # which imports more than most configs need

        if (exported := read_exported(path)) is None:
            raise ValueError(f"{path} has weights alone, no config: give the config of their model")
        return exported.cfg
    if Path(path).suffix != ".py":
        raise ValueError(f"{path} is no config: those are .py and .yaml files, and what tools/export_model.py writes")
    try:
        return LazyConfig.load(path)
    except (ValueError, OSError, OmegaConfBaseException, HydraException):
        raise
    except Exception as error:  # a config file is a program
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).resolve() == Path(path).resolve()]
        line = f":{ours[-1].lineno}" if ours else ""
        raise ValueError(f"{path}{line}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def call_parameters(target: Any) -> set[str]:
    """Names of the arguments that `target`, a callable or its dotted name, takes by keyword.

    Where a constructor passes `**kwargs` on, its base class's arguments are among them.
    """
    if isinstance(target, str):
        try:
            target = get_object(target)
        except Exception:  # whatever importing it raises; building it will say what is wrong
            return set()
    if inspect.isclass(target):
        calls = [cls.__init__ for cls in inspect.getmro(target) if "__init__" in vars(cls)]
    else:
        calls = [target] if callable(target) else []
    names: set[str] = set()
    for call in calls:
        try:
            parameters = inspect.signature(call).parameters.values()
        except (TypeError, ValueError):  # written in C
            break
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}
