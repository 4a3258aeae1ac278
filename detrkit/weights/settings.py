"""Settings that belong to the weights of a file: written into a config before the model is built, or refused."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from detrkit.config.load import call_parameters

from .format import DETECTORS, Format

NUM_CLASSES = "model.num_classes"
IGNORED = "train.ignore_checkpoint_settings"
IMPLIED = {"inverse_sigmoid_eps": 1e-3, "res5_dilation": 1}
"""What holds of a detector that has no such option: detrex has 1e-3 written into its code."""


class Change(NamedTuple):
    """A config key whose value was changed for the sake of the weights."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} {self.before} -> {self.after}"


def apply_settings(
    cfg: DictConfig,
    settings: Mapping[str, Any],
    source: str,
    *,
    must_be: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    for_training: bool = False,
) -> list[Change]:
    """Set in a config what the weights of a file were trained with.

    Args:
        cfg: changed in place. Keys listed in its `train.ignore_checkpoint_settings` are left as they are.
        settings: config keys and values.
        source: what needs them, for errors, such as the name of the file and its format.
        must_be: config keys that must have these values, and cannot be set alone.
        overrides: `key=value` as the user gave them; a setting never replaces one of them.
        for_training: the number of classes stays as it is: it is that of the data.

    Raises:
        ValueError: a setting cannot be made in this config; a value of `must_be` differs; or an override contradicts.
    """
    ignored = set(OmegaConf.select(cfg, IGNORED) or ())
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    for key, value in (must_be or {}).items():
        found = _value(cfg, key)
        if key not in ignored and found != value:
            raise ValueError(f"{source} is of another model than the config's: {key} is {value} there, {found} here")
    changes = []
    for key, value in settings.items():
        if key in ignored or (for_training and key == NUM_CLASSES):
            continue
        before = _current(cfg, key, value, source)
        if before == value:
            continue
        if key in given:
            raise ValueError(
                f"{key}={before} contradicts {source}, which was trained with {value}: leave {key} out, or keep it by "
                f"+{IGNORED}=[{key}]"
            )
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        changes.append(Change(key, before, value))
    return changes


def _current(cfg: DictConfig, key: str, value: Any, source: str) -> Any:
    """The value of a key, from the config or as the constructor's default.

    Raises:
        ValueError: it cannot be set, and differs from `value`.
    """
    path, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, path)
    if isinstance(parent, DictConfig):
        if name in parent:
            return parent[name]
        target = _target(parent)
        if target is not None and name in call_parameters(target):
            return _default(target, name)
    if name in IMPLIED and value == IMPLIED[name]:
        return value
    owner = getattr(_target(parent), "__name__", None)
    owner = f"{owner} here" if owner else "the config"
    raise ValueError(
        f"{source} was trained with {key}={value}, which {owner} has no option for: to accept results that differ, add "
        f"+{IGNORED}=[{key}]"
    )


def _value(cfg: DictConfig, key: str) -> Any:
    """The value of a key, from the config or as the constructor's default; None if there is neither."""
    path, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, path)
    if not isinstance(parent, DictConfig) or name in parent:
        return OmegaConf.select(cfg, key)
    target = _target(parent)
    return _default(target, name) if target is not None else None


def _target(node: Any) -> Any:
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if isinstance(target, str):
        try:
            return get_object(target)
        except Exception:  # whatever importing it raises; building the model will say what is wrong
            return None
    return target


def _default(target: Any, name: str) -> Any:
    """The default of an argument; of a class that passes it on, of the base class that takes it."""
    calls = [cls.__init__ for cls in inspect.getmro(target)] if inspect.isclass(target) else [target]
    for call in calls:
        parameter = inspect.signature(call).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return parameter.default
    return None


def check_detector(cfg: DictConfig, known: Format, source: str) -> None:
    """Raise ValueError if the config's model is not of the kind that a format's weights are for."""
    target = _target(cfg.model)
    wanted = get_object(DETECTORS[known.detector])
    if inspect.isclass(target) and not issubclass(target, wanted):
        raise ValueError(
            f"{source} holds the weights of a {known.detector}, but the config's model is a {target.__name__}: take a "
            f"config of a {known.detector}"
        )


def listed(changes: Iterable[Change]) -> str:
    """The changes in one line."""
    return ", ".join(map(str, changes))
