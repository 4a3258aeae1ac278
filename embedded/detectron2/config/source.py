"""Read config files: Python with relative imports by path, or YAML."""

import builtins
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from omegaconf import DictConfig

__all__ = ["as_config", "read_config_file"]


def as_config(value: Any) -> Any:
    """Convert a dict to a DictConfig that allows all objects; return other values unchanged."""
    return DictConfig(value, flags={"allow_objects": True}) if isinstance(value, dict) else value


def read_config_file(path: Path, importers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Execute (.py) or parse (.yaml) a config file, and return its global names.

    Args:
        importers: the chain of files whose relative imports led to this file, outermost first.
    """
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise ValueError(f"config file {path} must end in .py or .yaml")
    if not path.is_file():
        raise FileNotFoundError(f"no such config file: {path}")
    text = path.read_text(encoding="utf-8")
    return _execute(path, text, importers) if path.suffix == ".py" else _parse_yaml(path, text)


def _parse_yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.unsafe_load(text)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: not valid YAML: {getattr(err, 'problem', None) or err}") from err
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a mapping of config names")
    return content


def _execute(path: Path, text: str, importers: tuple[Path, ...]) -> dict[str, Any]:
    try:
        code = compile(text, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as err:
        line = getattr(err, "lineno", None) or 1
        raise ValueError(f"{path}:{line}: not valid Python: {getattr(err, 'msg', err)}") from err

    # Symbolic links are not resolved: relative imports start from the link's folder.
    chain = (*importers, Path(os.path.abspath(path)))

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0:
            return builtins.__import__(name, globals, locals, fromlist, level)
        where = f"{path}:{sys._getframe(1).f_lineno}"
        return _import_config(where, chain, name, fromlist or (), level)

    # The import statement uses `__import__` of the namespace's builtins, so nothing global is patched.
    namespace = {
        "__name__": f"<config {path.stem}>",
        "__file__": str(path),
        "__builtins__": {**vars(builtins), "__import__": import_},
    }
    exec(code, namespace)
    return {name: value for name, value in namespace.items() if name != "__builtins__"}


def _import_config(where: str, chain: tuple[Path, ...], name: str, fromlist: tuple[str, ...], level: int) -> ModuleType:
    """Return the module for `from <level dots><name> import <fromlist>` in the last file of `chain`."""
    if not name:
        raise ValueError(f"{where}: a relative import needs the name of a config file: from .file import name")
    if "*" in fromlist:
        raise ValueError(f"{where}: import * is not supported in a config: from .{name} import name")
    base = chain[-1].parents[level - 1].joinpath(*name.split("."))
    source = base.with_name(f"{base.name}.py")
    if not source.is_file():
        what = "a folder, not a config file" if base.is_dir() else "not there"
        raise FileNotFoundError(f"{where}: relative import of a config file that is {what}: {source}")
    module = _import_file(where, chain, source)
    for item in fromlist:
        if not hasattr(module, item):
            raise ValueError(f"{where}: no {item!r} in {source}")
    return module


def _import_file(where: str, chain: tuple[Path, ...], file: Path) -> ModuleType:
    """Return a config file as a module of its names; dicts become DictConfigs."""
    if any(file.samefile(importer) for importer in chain):
        loop = " -> ".join(str(link) for link in (*chain, file))
        raise ValueError(f"{where}: circular import of config files: {loop}")
    module = ModuleType(file.stem)
    vars(module).update({name: as_config(value) for name, value in read_config_file(file, chain).items()})
    return module
