"""Configs as text: YAML to load again, Python-like lines to read."""

import ast
import inspect
import logging
import textwrap
from collections.abc import Callable, Iterator
from types import LambdaType
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from .instantiate import TARGET, dotted_name

__all__ = ["resolve_all", "to_python", "to_yaml"]

PRIMITIVES = (str, int, float, bool, type(None))


class _Dumper(yaml.Dumper):
    """PyYAML's dumper of Python objects; no anchors, and lambdas as their source."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_lambda(self, function: LambdaType) -> yaml.Node:
        if function.__name__ != "<lambda>":
            return self.represent_name(function)
        source = [lambda_source(function)]
        return self.represent_sequence("tag:yaml.org,2002:python/object/apply:builtins.eval", source)


_Dumper.add_representer(LambdaType, _Dumper.represent_lambda)


def resolve_all(cfg: Any) -> None:
    """Look at every value, so that one that cannot be resolved is found before a training rather than in it."""
    values = cfg.values() if isinstance(cfg, DictConfig) else cfg if isinstance(cfg, ListConfig) else ()
    for value in values:
        resolve_all(value)


def to_yaml(cfg: Any, filename: str) -> str:
    """The text of `LazyConfig.save`; `filename` is for the warnings only."""
    content = _writable(OmegaConf.to_container(cfg, resolve=False), "", filename)
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _writable(value: Any, key: str, filename: str) -> Any:
    """`value` with targets as names, and the repr of whatever YAML cannot bring back."""
    if isinstance(value, dict):
        return {name: _writable(item, f"{key}.{name}".lstrip("."), filename) for name, item in value.items()}
    if isinstance(value, list):
        return [_writable(item, f"{key}.{position}", filename) for position, item in enumerate(value)]
    if isinstance(value, PRIMITIVES):
        return value
    if key.endswith(TARGET) and _name(value) != repr(value):
        return _name(value)
    if _survives_yaml(value):
        return value
    logging.getLogger(__name__).warning(
        f"{filename} cannot hold {key} = {value!r} and has its repr instead: to repeat this run, load the .py config"
    )
    return repr(value)


def _survives_yaml(value: Any) -> bool:
    try:
        restored = yaml.unsafe_load(yaml.dump(value, Dumper=_Dumper))
    except Exception:  # whatever __reduce__, an import or a constructor may raise
        return False
    return type(restored) is type(value)


def lambda_source(function: LambdaType) -> str:
    """The expression a lambda was written as; ValueError when it could not be evaluated on its own."""
    names = inspect.getclosurevars(function)
    if names.nonlocals or names.globals:
        raise ValueError(f"{function} uses names from around it")
    code = function.__code__
    file = ast.parse("".join(inspect.findsource(function)[0]))
    for node in ast.walk(file):
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno:
            source = ast.unparse(node)
            again = eval(source).__code__
            if (again.co_code, again.co_consts, again.co_names) == (code.co_code, code.co_consts, code.co_names):
                return source
    raise ValueError(f"{function} is not in {code.co_filename} any more")


def to_python(content: Any, prefix: str) -> str:
    """The text of `LazyConfig.to_py` for the config's plain content."""
    return "".join(f"{line}\n" for line in _assignments(content, prefix.removesuffix(".")))


def _assignments(content: Any, name: str) -> Iterator[str]:
    if isinstance(content, dict) and content and TARGET not in content:
        for key, value in content.items():
            yield from _assignments(
                value, f"{name}.{key}".lstrip(".") if str(key).isidentifier() else f"{name}[{key!r}]"
            )
    else:
        yield f"{name} = {_expression(content)}"


def _expression(value: Any) -> str:
    if isinstance(value, list):
        return _bracketed("[", [_expression(item) for item in value], "]")
    if isinstance(value, dict) and TARGET in value:
        arguments = [f"{key}={_expression(item)}" for key, item in value.items() if key != TARGET]
        return _bracketed(f"{_name(value[TARGET])}(", arguments, ")")
    if isinstance(value, dict):
        return _bracketed("{", [f"{key!r}: {_expression(item)}" for key, item in value.items()], "}")
    return _name(value) if callable(value) else repr(value)


def _bracketed(head: str, items: list[str], tail: str, width: int = 80) -> str:
    """`head item, item tail`, on several indented lines when one would be too long."""
    line = head + ", ".join(items) + tail
    if len(line) <= width and "\n" not in line:
        return line
    return f"{head}\n" + textwrap.indent("".join(f"{item},\n" for item in items), "    ") + tail


def _name(target: Callable | str) -> str:
    if isinstance(target, str):
        return target
    try:
        return dotted_name(target)
    except ValueError:
        return repr(target)
