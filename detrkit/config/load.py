"""Load configs by name or path, from a checkout or an installed package."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .catalogue import CONFIGS, find_config
from .overrides import as_list, in_grammar, key_of
from .safe_yaml import load_yaml

TARGET = "_target_"


def get_config(path: str) -> DictConfig:
    """Load this repository's `configs/<path>`, such as "baselines/dino_r50_4scale_12ep.py".

    `detrex.config.get_config` reads the folder of the installed detrex, whose configs differ from release to release.
    A row built on this one is the same model with the same keys on every platform.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return LazyConfig.load(str(CONFIGS / path))


def get_project_config(path: str) -> DictConfig:
    """Load a baseline by its former path, "dino/configs/dino_tiny.py": configs of users name it so."""
    return get_config(f"baselines/{path.partition('/configs/')[2]}")


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load the config at `path`, or of that name, with overrides.

    Such as `train.max_iter=100`, `model.criterion.k=3`, `+new.key=1`.

    Raises:
        ValueError: an override cannot be parsed, its key is not in the config, or its value has the wrong type;
            or the overrides are one string.
        FileNotFoundError: no such config.
    """
    return _overridden(load_config_file(path), as_list(overrides))


def load_configs(sources: Sequence[str | DictConfig], overrides: Sequence[str]) -> list[DictConfig]:
    """Load configs of models to compare. Each override changes all configs that have its key.

    Args:
        sources: names or paths, as `load_config` takes them, or loaded configs.

    Raises:
        As `load_config`; for an override that fits no config, the message is about the first config.
    """
    overrides = as_list(overrides)
    configs = [source if isinstance(source, DictConfig) else load_config_file(source) for source in sources]
    fitting = [[override for override in overrides if _fits(cfg, override)] for cfg in configs]
    stray = [override for override in overrides if not any(override in fits for fits in fitting)]
    fitting[0] += stray
    return [_overridden(cfg, fits) for cfg, fits in zip(configs, fitting, strict=True)]


def _overridden(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    overrides = [in_grammar(cfg, override) for override in overrides]
    for override in overrides:
        _check_override(cfg, override)
    try:
        return LazyConfig.apply_overrides(cfg, overrides)
    except KeyError as error:  # detectron2's, of a key beneath a value
        raise ValueError(error.args[0]) from error


def _fits(cfg: DictConfig, text: str) -> bool:
    return text.startswith("+") or _has(cfg, key_of(text))


def _check_override(cfg: DictConfig, text: str) -> None:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ValueError(f"cannot read the override {text}: {str(error).splitlines()[0]}") from error
    key = override.key_or_group
    if override.is_delete():
        raise ValueError(f"{text}: nothing can be deleted; set {key}=null, or copy the config")
    if override.is_add():
        return
    if not _has(cfg, key):
        near = _nearest(key, _all_keys(OmegaConf.to_container(cfg)))
        hint = f"did you mean {near}?" if near else "it has no key like it;"
        raise ValueError(f"the config has no {key}: {hint} (+{key}=... adds a new one)")
    _check_value(key, OmegaConf.select(cfg, key), override.value())


def _has(cfg: DictConfig, key: str) -> bool:
    """Whether the config has this key, or it names a parameter of a call that the config describes."""
    node: Any = cfg
    *parents, leaf = key.split(".")
    for part in parents:
        if isinstance(node, DictConfig) and part in node:
            node = node[part]
        elif isinstance(node, ListConfig) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            return False
    if isinstance(node, ListConfig):
        return leaf.isdecimal() and int(leaf) < len(node)
    return isinstance(node, DictConfig) and (leaf in node or leaf in call_parameters(node.get(TARGET)))


def _check_value(key: str, old: Any, new: Any) -> None:
    is_group = isinstance(old, DictConfig) and TARGET not in old
    if is_group and new is not None and not isinstance(new, dict):
        raise ValueError(f"{key} is a group, not a value: set one of {', '.join(f'{key}.{name}' for name in old)}")
    if isinstance(old, bool) and not isinstance(new, bool | None):
        raise ValueError(f"{key} is true or false, not {new}")
    if isinstance(old, int | float) and isinstance(new, str):
        raise ValueError(f"{key} is a number, not {new}")


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key that an override may name."""
    if isinstance(node, dict):
        items = {**dict.fromkeys(sorted(call_parameters(node.get(TARGET)))), **node}
        items.pop(TARGET, None)
    else:
        items = dict(enumerate(node)) if isinstance(node, list) else {}
    for name, child in items.items():
        yield f"{prefix}{name}"
        yield from _all_keys(child, f"{prefix}{name}.")


def _nearest(key: str, keys: Iterator[str]) -> str | None:
    """Return the most similar key; keys with the same last part come first."""
    keys = list(keys)
    leaf = key.rpartition(".")[2]
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    if same_leaf:
        return max(same_leaf, key=lambda k: SequenceMatcher(None, k, key).ratio())
    return next(iter(get_close_matches(key, keys, n=1)), None)


def load_config_file(path: str) -> DictConfig:
    """Load a config by its name or from a `.py` file, which is run, or from a `.yaml` or exported `.safetensors` file.

    Raises:
        FileNotFoundError: no such file; the message has similar names.
        ValueError: it is no config, or raises an error, which is reported with its line.
    """
    if not path:
        raise ValueError("no config: give its name or path; `align-detr configs` lists the names")
    path = str(find_config(path))
    if Path(path).suffix in (".yaml", ".yml"):
        # These imports are slow, and only configs in YAML need them.
        from detrkit.datasets.registration import moved_registrations, register_own_datasets, register_saved

        register_own_datasets()
        cfg = load_yaml(path)
        datasets = cfg.get("datasets") or {}
        if not isinstance(datasets, DictConfig | dict) or not all(isinstance(d, DictConfig) for d in datasets.values()):
            raise ValueError(f"{path}: datasets is not a mapping of names to json_file and image_root")
        recorded = OmegaConf.select(cfg, "train.output_dir", throw_on_resolution_failure=False)
        if datasets and isinstance(recorded, str):
            cfg.datasets = datasets = moved_registrations(datasets, recorded, Path(path).parent)
        register_saved(datasets)
        return cfg
    if Path(path).suffix == ".safetensors":
        from detrkit.config.exported import read_exported  # which imports more than most configs need

        if (exported := read_exported(path)) is None:
            raise ValueError(f"{path} has weights and no config: give the config of their model")
        return exported.cfg
    if Path(path).suffix != ".py":
        raise ValueError(
            f"{path} is no config: give a .py, a .yaml, a .safetensors file of `align-detr export`, or the folder of a "
            "training"
        )
    try:
        return LazyConfig.load(path)
    except (ValueError, OSError, OmegaConfBaseException, HydraException):
        raise
    except Exception as error:  # a config file is a program
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).resolve() == Path(path).resolve()]
        line = f":{ours[-1].lineno}" if ours else ""
        raise ValueError(f"{path}{line}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def call_parameters(target: Any) -> set[str]:
    """Return the names of the keyword arguments of `target`, a callable or its dotted name.

    Where a constructor passes `**kwargs` on, its base class's arguments are among them.
    """
    if isinstance(target, str):
        try:
            target = get_object(target)
        except Exception:  # importing it may raise anything; building the model will report it
            return set()
    if inspect.isclass(target):
        calls = [cls.__init__ for cls in inspect.getmro(target) if "__init__" in vars(cls)]
    else:
        calls = [target] if callable(target) else []
    names: set[str] = set()
    for call in calls:
        try:
            parameters = inspect.signature(call).parameters.values()
        except (TypeError, ValueError):  # written in C
            break
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}
