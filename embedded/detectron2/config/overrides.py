"""Command-line overrides in hydra's grammar, applied to a config."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

__all__ = ["apply_overrides"]


def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """See `LazyConfig.apply_overrides`."""
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as err:
            reason = str(err).splitlines()[0]
            raise ValueError(f"override {text!r} is not of the form key=value: {reason}") from err
        if override.is_sweep_override():
            raise ValueError(f"override {text!r} is a sweep: write key=[a,b] for a list, key='a,b' for a text")
        if override.is_delete():
            raise NotImplementedError(f"override {text!r}: cannot delete; set it to null, or copy the config")
        _apply(cfg, override, text)
    return cfg


def _apply(cfg: DictConfig, override: Override, text: str) -> None:
    *parents, leaf = override.key_or_group.split(".")
    node: DictConfig | ListConfig = cfg
    for depth, part in enumerate(parents, start=1):
        path = ".".join(parents[:depth])
        key = _key(node, part, text)
        if OmegaConf.is_interpolation(node, key):
            raw = OmegaConf.to_container(node, resolve=False)[key]
            raise ValueError(f"override {text!r}: {path} is an interpolation of {raw}; override that instead")
        child = _get(node, key)
        if child is None:
            node[key] = {}
            child = node[key]
        if not OmegaConf.is_config(child):
            raise ValueError(f"override {text!r}: {path} is {child!r}, which has no keys")
        node = child

    key = _key(node, leaf, text)
    value = override.value()
    current = None if OmegaConf.is_interpolation(node, key) else _get(node, key)
    if isinstance(value, dict) and isinstance(current, DictConfig):
        current.merge_with(value)
    else:
        node[key] = value


def _key(node: DictConfig | ListConfig, part: str, text: str) -> str | int:
    """Convert `part` to a key of the mapping, or to a position in the list."""
    if isinstance(node, DictConfig):
        return part
    try:
        position = int(part)
        node[position]
    except (ValueError, IndexError):
        raise ValueError(f"override {text!r}: {part} is not a position in a list of {len(node)}") from None
    return position


def _get(node: DictConfig | ListConfig, key: str | int) -> Any:
    return node.get(key) if isinstance(node, DictConfig) else node[key]
