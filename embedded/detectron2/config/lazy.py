"""`LazyCall` describes a call without making it; `LazyConfig` loads, changes and saves config files."""

import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from . import overrides as override_grammar
from .instantiate import TARGET, dotted_name
from .serialize import resolve_all, to_python, to_yaml
from .source import as_config, read_config_file

__all__ = ["LazyCall", "LazyConfig"]


class LazyCall:
    """`LazyCall(target)(**arguments)` describes the call `target(**arguments)` for `instantiate`.

    The result is a DictConfig: its arguments can be read, replaced and interpolated ("${..other}").

    Args:
        target: a callable, or its dotted name.
    """

    def __init__(self, target: Callable | str):
        if not (callable(target) or isinstance(target, str)):
            raise TypeError(f"LazyCall needs a callable or its dotted name, not a {type(target).__name__}")
        self._target = target

    def __call__(self, **kwargs) -> DictConfig:
        target = self._target
        # OmegaConf would read a dataclass or a type of container as the schema of a node.
        if is_dataclass(target) or (isinstance(target, type) and issubclass(target, (dict, list, tuple))):
            target = dotted_name(target)
        return DictConfig({TARGET: target, **kwargs}, flags={"allow_objects": True})


def _is_config_entry(name: str, value: Any) -> bool:
    return isinstance(value, (dict, DictConfig, ListConfig)) and not name.startswith("_")


class LazyConfig:
    """Load, change and save config files."""

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a `.py` or `.yaml` config. Two loads of a file share nothing.

        A Python file is executed. The config has its global dicts (and LazyCall results, DictConfigs, ListConfigs)
        whose names do not begin with `_`. A relative import reads another config file by its path, without a package:
        `from ..common.train import train` reads `../common/train.py`.

        Args:
            filename: path of the file. Python and YAML files can run code: load only files that you trust.
            keys: None for a DictConfig of everything, one name for its value, several names for a tuple of values.

        Raises:
            FileNotFoundError: the file, or a file that it imports, does not exist.
            ValueError: not .py or .yaml; invalid Python or YAML; circular relative imports; a missing name.
        """
        namespace = read_config_file(Path(filename))
        if keys is None:
            if Path(filename).suffix == ".py":
                namespace = {name: value for name, value in namespace.items() if _is_config_entry(name, value)}
            return as_config(namespace)
        names = (keys,) if isinstance(keys, str) else keys
        for name in names:
            if name not in namespace:
                raise ValueError(f"{filename} defines no {name!r}")
        values = tuple(as_config(namespace[name]) for name in names)
        return values[0] if isinstance(keys, str) else values

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a file by a path relative to the calling Python file, see `load`."""
        caller = Path(sys._getframe(1).f_code.co_filename)
        if not caller.is_file():
            raise ValueError(f"load_rel({filename!r}) is relative to the calling file, but {caller} is not a file")
        return LazyConfig.load(str(caller.parent / filename), keys)

    @staticmethod
    def save(cfg: DictConfig, filename: str) -> None:
        """Save the config as YAML for `load`: targets by dotted name, interpolations unresolved.

        Importable functions and classes, and lambdas without a closure, are kept. Other objects are replaced by their
        repr, and a warning names the key.

        Raises:
            omegaconf.errors.OmegaConfBaseException: a value cannot be resolved, such as an interpolation of a missing
                key.
        """
        resolve_all(cfg)
        Path(filename).write_text(to_yaml(cfg, filename), encoding="utf-8")

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Change the config in place, and return it.

        Args:
            overrides: in hydra's grammar: `a.b=3`, `a.list.0=x`, `a='quoted, text'`, `a=[1,2]`, `a={x: 1}`,
                `+a.new=3`. A missing key is added, with or without the `+`.

        Raises:
            ValueError: a syntax error, a sweep, or a key below a value that is not a mapping or list.
            NotImplementedError: a deletion, `~a.b`.
        """
        return override_grammar.apply_overrides(cfg, overrides)

    @staticmethod
    def to_py(cfg: DictConfig, prefix: str = "cfg.") -> str:
        """Return the config as readable Python-like text: one assignment per entry, targets as calls."""
        return to_python(OmegaConf.to_container(cfg, resolve=False), prefix)
