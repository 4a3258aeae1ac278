"""Read configs in YAML, such as the `config.yaml` of a training, without running code in them.

detectron2 reads them by `yaml.unsafe_load`, which calls any function that the file names.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object
from omegaconf import DictConfig

from detrkit.config.projects import PROJECT_NAMES

PACKAGES = (
    *PROJECT_NAMES,
    "detrkit",
    *("detectron2", "detrex", "fvcore", "projects", "torch.nn", "torch.optim"),
)
MAX_BYTES = 4_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 60
TARGET = "_target_"
# A reference to another value of the config. Other resolvers of OmegaConf, such as `${oc.decode:...}`, call functions.
REFERENCE = re.compile(r"\$\{[\w.\[\]]*\}")


class _Loader(yaml.SafeLoader):
    """Loader of plain data, tuples, and names of classes and functions in the packages of detectors."""


def _tuple(loader: _Loader, node: yaml.Node) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


def _name(loader: _Loader, name: str, node: yaml.Node) -> Any:
    return trusted(name)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", _name)


def trusted(name: str, packages: Sequence[str] = PACKAGES) -> Any:
    """Return the class or function of a dotted name.

    Raises:
        ValueError: it is not defined in one of the packages, also if one of them imports it.
    """
    if _is_of_packages(name, packages):
        try:
            found = get_object(name)
        except Exception as error:  # whatever importing it raises
            raise ValueError(f"it names {name}, which cannot be imported") from error
        if (inspect.isclass(found) or inspect.isroutine(found)) and _is_of_packages(
            f"{found.__module__}.", packages
        ):
            return found
    raise ValueError(f"it wants to call {name}: refused, as only a .py config may")


def _is_of_packages(name: str, packages: Sequence[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


def load_yaml(path: str | os.PathLike) -> DictConfig:
    """Load the config in a file. It may call only what lies in the packages of detectors (PACKAGES).

    Raises:
        ValueError: it is not YAML, not a mapping, calls something else, or is larger than any config.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than any config: {path.stat().st_size} bytes")
    return parse_yaml(path.read_bytes(), str(path))


def parse_yaml(text: str | bytes, path: str, packages: Sequence[str] = PACKAGES) -> DictConfig:
    """Parse the text of a config, as `load_yaml` does.

    Args:
        path: where it comes from, for errors.
        packages: where the classes and functions lie that the config may call.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{path}: larger than any config: {len(text)} bytes")
    try:
        content = yaml.load(text, Loader=_Loader)
        _check(content, [MAX_VALUES], MAX_DEPTH, packages)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path}{f':{mark.line + 1}' if mark else ''}: not a config in YAML: {reason}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested more deeply than any config") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping of config names, but a {type(content).__name__}")
    return DictConfig(content, flags={"allow_objects": True})


def _check(value: Any, left: list[int], depth: int, packages: Sequence[str]) -> None:
    # References within a YAML file can make a few lines arbitrarily large.
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise ValueError("more values, or more deeply nested, than in any config")
    if isinstance(value, dict):
        target = value.get(TARGET)
        if isinstance(target, str):
            trusted(target, packages)
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise ValueError(f"{key!r} is not the name of a key")
            _check(item, left, depth - 1, packages)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, left, depth - 1, packages)
    elif isinstance(value, str) and "${" in REFERENCE.sub("", value):
        raise ValueError(f"it wants to resolve {value[:80]!r}: refused, only references such as ${{train.device}} are")
