"""Make the calls that a config describes by mappings with `_target_`."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

TARGET = "_target_"


def dotted_name(target: Any) -> str:
    """Return the name `package.module.Class.method` of a class, function or classmethod; else raise ValueError."""
    try:
        name = f"{target.__module__}.{target.__qualname__}"
        imported = get_object(name)
    except (AttributeError, ImportError):
        imported = None
    # Bound classmethods are new objects on each access: equal, not identical.
    if imported is None or imported != target:
        raise ValueError(f"{target!r} cannot be imported by name")
    return name


def locate(target: str) -> Callable:
    """Import the callable of a dotted name; raise ValueError if this fails or it is not callable."""
    try:
        imported = get_object(target)
    except Exception as err:
        reason = str(err.__cause__ or err).strip().splitlines()[-1]
        raise ValueError(f"{TARGET} {target!r} of the config cannot be imported: {reason}") from err
    if not callable(imported):
        raise ValueError(f"{TARGET} {target!r} of the config is a {type(imported).__name__}, not a callable")
    return imported


def instantiate(cfg: Any) -> Any:
    """Make the calls that a config describes, innermost first.

    A mapping with `_target_` (a dotted name or a callable) is replaced by the target's result for the other entries.
    Items of lists are instantiated; a `ListConfig` stays a `ListConfig`. Interpolations are resolved. Other values are
    returned unchanged. Mappings without `_target_` are unchanged too: calls inside them are not made.

    Raises:
        ValueError: the target cannot be imported, or does not accept the arguments.
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
    """Return the mismatch between arguments and signature; None if the TypeError came from inside the call."""
    try:
        signature = inspect.signature(target)
    except ValueError:
        return None
    try:
        signature.bind(**arguments)
    except TypeError as err:
        return str(err)
    return None
