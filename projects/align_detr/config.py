"""Configs, found wherever the package was installed and read from files; and the devices that they name."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ._platform import EMBEDDED_ROOT
from .catalogue import find_config
from .safe_yaml import load_yaml


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
        from .data import register_own_datasets  # which takes longer to import than most of what needs no data

        register_own_datasets()
        return load_yaml(path)
    if Path(path).suffix == ".safetensors":
        from .deployment.exported import read_exported  # which imports more than most configs need

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


def resolve_device(name: str, key: str = "train.device") -> str:
    """`name` as PyTorch takes it; "auto" is the first of cuda, mps and cpu that is there. `key` is what the
    name was given as, for errors.

    Raises:
        ValueError: PyTorch has no such device here.
    """
    there = available_devices()
    if name == "auto":
        return there[0]
    available = {kind: torch.cuda.device_count() if kind == "cuda" else 1 for kind in there}
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= available.get(device.type, 0):
        counts = [f"{kind} (0 to {available[kind] - 1})" if available[kind] > 1 else kind for kind in there]
        raise ValueError(f"{key}={name} is not there; this machine has {', '.join(counts)}")
    if device.index is not None and comm.get_world_size() > 1:
        raise ValueError(f"{key}={name} is one device, but there are several processes: say {device.type}")
    return name
