"""`LazyCall` describes a call without making it; `LazyConfig` loads, changes and saves files of such descriptions."""

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
    """`LazyCall(target)(**arguments)` is the call `target(**arguments)`, written down for `instantiate`.

    The result is a DictConfig: its arguments can be read, replaced and interpolated ("${..other}") until then.

    Args:
        target: a callable, or its dotted name.
    """

    def __init__(self, target: Callable | str):
        if not (callable(target) or isinstance(target, str)):
            raise TypeError(f"LazyCall wants a callable or its dotted name, not a {type(target).__name__}")
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
    """Config files: what can be done with one."""

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Reads a `.py` or `.yaml` config. Nothing is shared between two loads of the same file.

        A Python file is executed; the dictionaries (and LazyCall results, DictConfigs, ListConfigs) among its global
        names that do not begin with `_` are the config. Its relative imports name other config files by their path:
        `from ..common.train import train` reads `../common/train.py`, no package needed.

        Args:
            filename: path of the file. YAML files may name Python objects, as Python files may: load only your own.
            keys: None for a DictConfig of everything, one name for its value, several for a tuple of values.

        Raises:
            FileNotFoundError: the file, or one that it imports, is not there.
            ValueError: neither .py nor .yaml; not valid Python or YAML; circular relative imports; a name missing.
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
        """`load`, with `filename` relative to the Python file that calls this."""
        caller = Path(sys._getframe(1).f_code.co_filename)
        if not caller.is_file():
            raise ValueError(f"load_rel({filename!r}) is relative to the calling file, and {caller} is none")
        return LazyConfig.load(str(caller.parent / filename), keys)

    @staticmethod
    def save(cfg: DictConfig, filename: str) -> None:
        """Writes the config as YAML that `load` reads back: targets by dotted name, interpolations unresolved.

        Importable functions and classes, and lambdas without a closure, are kept as well. For anything YAML cannot
        hold, its repr is written instead, and a warning names the key.

        Raises:
            omegaconf.errors.OmegaConfBaseException: a value cannot be resolved, such as an interpolation of a key that
                is not there.
        """
        resolve_all(cfg)
        Path(filename).write_text(to_yaml(cfg, filename), encoding="utf-8")

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Changes the config in place, and returns it.

        Args:
            overrides: in hydra's grammar: `a.b=3`, `a.list.0=x`, `a='quoted, text'`, `a=[1,2]`, `a={x: 1}`,
                `+a.new=3`. A key that does not exist is added, with or without the `+`.

        Raises:
            ValueError: not in this grammar, a sweep, or a key beneath something that is no mapping or list.
            NotImplementedError: `~a.b`, a deletion.
        """
        return override_grammar.apply_overrides(cfg, overrides)

    @staticmethod
    def to_py(cfg: DictConfig, prefix: str = "cfg.") -> str:
        """The config as readable Python-like text, one assignment per entry, targets as calls; not to be executed."""
        return to_python(OmegaConf.to_container(cfg, resolve=False), prefix)
