"""Names of configs, and keys and values of a config, for argcomplete.

Loading a config imports PyTorch, which takes seconds. So the keys of each config are kept in the user's cache folder.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detrkit.runtime.weight_files import ZOO

DEVICES = ["auto", "cpu", "cuda", "mps"]
KEPT = 50  # configs in the cache


def configs(prefix: str) -> list[str]:
    """Return names of configs; where no name begins so, what `checkpoints` returns."""
    from detrkit.config.catalogue import config_files

    names = [name for name in config_files() if name.startswith(prefix)]
    return names or checkpoints(prefix)


def checkpoints(prefix: str) -> list[str]:
    """Return files and folders; names of published weights behind `zoo:`, which is offered by its first letters."""
    from argcomplete import FilesCompleter

    if not prefix.startswith(ZOO):
        return [*FilesCompleter()(prefix), *([ZOO] if prefix and ZOO.startswith(prefix) else [])]
    from detrkit.weights import zoo

    names = [f"{ZOO}{entry.name}" for entry in zoo.select() if not entry.lacks]
    return [name for name in names if name.startswith(prefix)]


def overrides(prefix: str, args: argparse.Namespace) -> list[str]:
    """Return the keys of the config on the command line that begin with `prefix`, or the values of one key.

    Groups end in ".", keys in "=". If the line has no config, its name is completed.
    """
    config = getattr(args, "config", None) or getattr(args, "config_file", None)
    if not config:
        return configs(prefix)
    try:
        known = values_by_key(config)
    except Exception:  # a config file is a program; running the command will report the error
        return []
    key, equals, _ = prefix.partition("=")
    if equals:
        return [f"{key}={value}" for value in known.get(key, [])]
    return list(dict.fromkeys(_next_level(known, prefix)))


def _next_level(keys: Mapping[str, Any], prefix: str) -> Iterator[str]:
    start = prefix.rpartition(".")[0].count(".") + ("." in prefix)  # parts that are complete
    for key in keys:
        if key.startswith(prefix):
            parts = key.split(".")
            yield ".".join(parts[: start + 1]) + ("." if len(parts) > start + 1 else "=")


def values_by_key(config: str) -> dict[str, list[str]]:
    """Return the values that Tab offers for each key of a config, from the cache if the file is unchanged."""
    from align_detr import __version__
    from detrkit.config.catalogue import find_config

    path = Path(config, "config.yaml") if Path(config).is_dir() else find_config(config)
    name, stamp = str(path.resolve()), f"{__version__} {path.stat().st_mtime_ns}"
    cache = _cache_file()
    kept = _read(cache)
    if name in kept and kept[name][0] == stamp:
        return kept[name][1]
    from omegaconf import OmegaConf

    from detrkit.config.load import load_config_file

    found = dict(_describe(OmegaConf.to_container(load_config_file(str(path))), ""))
    kept = {**dict(list(kept.items())[1 - KEPT :]), name: [stamp, found]}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.with_suffix(".tmp").write_text(json.dumps(kept), encoding="utf-8")
        cache.with_suffix(".tmp").replace(cache)
    except OSError:  # a read-only home: the next Tab loads the config again
        pass
    return found


def _read(cache: Path) -> dict[str, list]:
    """Return the cache: [stamp, values by key] for each config; {} if there is none or it is damaged."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        return {name: [stamp, dict(values)] for name, (stamp, values) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "align-detr" / "keys.json"


def _describe(node: Mapping, prefix: str) -> Iterator[tuple[str, list[str]]]:
    from detrkit.config.load import TARGET, call_parameters

    arguments = call_parameters(node[TARGET]) if TARGET in node else ()
    for name, value in {**dict.fromkeys(sorted(arguments)), **node}.items():
        key = f"{prefix}{name}"
        if name == TARGET:
            continue
        if isinstance(value, Mapping):
            yield from _describe(value, f"{key}.")
        else:
            yield key, _values(key, value)


def _values(key: str, now: Any) -> list[str]:
    """Return the values that a key takes, if they are few; otherwise the present one."""
    if isinstance(now, bool):
        return ["True", "False"]
    if key.endswith("loss_class_type"):
        from align_detr.modeling.losses import CLASSIFICATION_LOSSES

        return list(CLASSIFICATION_LOSSES)
    if key in ("train.device", "model.device"):
        return DEVICES
    if key == "train.amp.dtype":
        return ["bfloat16", "float16"]
    return [str(now)] if isinstance(now, int | float | str) and "${" not in str(now) else []
