"""From the description of a call (a mapping with `_target_`) to its result."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

TARGET = "_target_"


def dotted_name(target: Any) -> str:
    """`package.module.Class.method` of a class, function or classmethod; ValueError for what has no such name."""
    try:
        name = f"{target.__module__}.{target.__qualname__}"
        found = get_object(name)
    except (AttributeError, ImportError):
        found = None
    # Bound classmethods are new objects on each access: equal, not identical.
    if found is None or found != target:
        raise ValueError(f"{target!r} cannot be imported by name")
    return name


def locate(target: str) -> Callable:
    """Import the object of a dotted name; ValueError if that fails or the object cannot be called."""
    try:
        found = get_object(target)
    except Exception as err:
        reason = str(err.__cause__ or err).strip().splitlines()[-1]
        raise ValueError(f"{TARGET} {target!r} of the config cannot be imported: {reason}") from err
    if not callable(found):
        raise ValueError(f"{TARGET} {target!r} of the config is a {type(found).__name__}, not a callable")
    return found


def instantiate(cfg: Any) -> Any:
    """Makes the calls that a config describes, innermost first.

    A mapping with `_target_` (a dotted name or a callable) becomes the target's result on the other entries. Lists are
    walked through; a `ListConfig` arrives as a `ListConfig`. Interpolations are resolved. Anything else is returned as
    it is, callables and mappings without `_target_` included: calls described inside such a mapping are not made.

    Raises:
        ValueError: the target does not import, or does not take the arguments that the config has.
    """
    if isinstance(cfg, ListConfig):
        return ListConfig([instantiate(item) for item in cfg], flags={"allow_objects": True})
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and is_dataclass(OmegaConf.get_type(cfg)):
        return OmegaConf.to_object(cfg)
    if not (isinstance(cfg, Mapping) and TARGET in cfg):
        return cfg

    arguments = {key: instantiate(value) for key, value in cfg.items()}
    target = arguments.pop(TARGET)
    if isinstance(target, str):
        target = locate(target)
    try:
        return target(**arguments)
    except TypeError as err:
        if mismatch := _signature_mismatch(target, arguments):
            name = getattr(target, "__qualname__", repr(target))
            raise ValueError(f"the config's arguments do not fit {name}: {mismatch}") from err
        raise


def _signature_mismatch(target: Callable, arguments: dict[str, Any]) -> str | None:
    """What is wrong with the names of the arguments; None if the TypeError came from within the call."""
    try:
        signature = inspect.signature(target)
    except ValueError:
        return None
    try:
        signature.bind(**arguments)
    except TypeError as err:
        return str(err)
    return None
