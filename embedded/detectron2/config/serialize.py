"""Configs as text: YAML for loading, Python-like lines for reading."""

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
    """PyYAML's dumper of Python objects, without anchors, and with the source of lambdas."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_lambda(self, function: LambdaType) -> yaml.Node:
        if function.__name__ != "<lambda>":
            return self.represent_name(function)
        source = [lambda_source(function)]
        return self.represent_sequence("tag:yaml.org,2002:python/object/apply:builtins.eval", source)


_Dumper.add_representer(LambdaType, _Dumper.represent_lambda)


def resolve_all(cfg: Any) -> None:
    """Access every value, so that an unresolvable one raises an error before a training."""
    values = cfg.values() if isinstance(cfg, DictConfig) else cfg if isinstance(cfg, ListConfig) else ()
    for value in values:
        resolve_all(value)


def to_yaml(cfg: Any, filename: str) -> str:
    """Return the text for `LazyConfig.save`; `filename` is only for warnings."""
    content = _writable(OmegaConf.to_container(cfg, resolve=False), "", filename)
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _writable(value: Any, key: str, filename: str) -> Any:
    """Replace targets by names, and values that YAML cannot restore by their repr."""
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
        f"{filename} cannot save {key} = {value!r} and has its repr instead: to repeat this run, load the .py config"
    )
    return repr(value)


def _survives_yaml(value: Any) -> bool:
    try:
        restored = yaml.unsafe_load(yaml.dump(value, Dumper=_Dumper))
    except Exception:  # __reduce__, an import or a constructor may raise anything
        return False
    return type(restored) is type(value)


def lambda_source(function: LambdaType) -> str:
    """Return the source of a lambda; raise ValueError if the source cannot be evaluated alone."""
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
    """Return the text of `LazyConfig.to_py` for a plain container."""
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
    """Format `head item, item tail`, on several indented lines if one is too long."""
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
