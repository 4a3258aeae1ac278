#!/usr/bin/env python
"""Records, as numbers and names, what configs, models and public names are on an installed detectron2 and detrex.

    python tests/upstream/recording.py    # in an environment that has both; writes recorded.json beside this file

Continuous integration has neither, and compares the engine with the recording (`test_recorded.py`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).with_name("recorded.json")
PACKAGES = ("detectron2", "detrex", "projects.dino", "projects.h_deformable_detr", "projects.dab_detr")
PACKAGES += ("projects.conditional_detr",)
# Configs are written for both platforms; what else is is the project and its tools.
WRITTEN_FOR_BOTH = ("projects", "detrkit", "tools", "configs")

sys.path[:0] = [str(ROOT / "projects"), str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from detectron2.config import LazyConfig, instantiate  # noqa: E402
from meta_device import keep_linspace_values  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

import align_detr  # noqa: E402, F401  (its import makes detectron2, detrex and projects.* importable)
from align_detr._platform import is_upstream  # noqa: E402


def config_files() -> dict[str, Path]:
    """The rows of all projects and the baselines they are of, by name."""
    folders = [*(ROOT / "projects").glob("*/configs"), ROOT / "configs/baselines"]
    files = [path for folder in folders for path in folder.glob("*.py")]
    return {path.stem: path for path in sorted(files)}


def models(configs: dict[str, dict[str, Any]]) -> list[str]:
    """The configs with models that differ: the first of each."""
    first: dict[str, str] = {}
    for name in sorted(configs):
        model = {key: value for key, value in configs[name].items() if key.startswith("model.")}
        first.setdefault(json.dumps(model, sort_keys=True, default=str), name)
    return list(first.values())


def resolved(path: Path) -> dict[str, Any]:
    """Every value of a config by its dotted key; classes and functions by name, what differs by machine left out."""
    cfg = LazyConfig.load(str(path))
    cfg.train.device = "cpu"
    return dict(_leaves(OmegaConf.to_container(cfg, resolve=True), ""))


def _leaves(value: Any, key: str):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None or not value:
        # The same class lies in another module there.
        name = value.rpartition(".")[2] if key.endswith("_target_") and isinstance(value, str) else value
        yield key, getattr(name, "__name__", name) if callable(name) else name
        return
    for name, item in items:
        yield from _leaves(item, f"{key}.{name}".lstrip("."))


def tensors(path: Path) -> dict[str, Any]:
    """How many tensors a config's model has, how many parameters, and a fingerprint of names and shapes."""
    cfg = LazyConfig.load(str(path))
    # Models at full size are built without storage, which detrex's constructors do not get in the way of on "meta".
    cfg.train.device = cfg.model.device = "meta"
    with torch.device("meta"):
        model = instantiate(cfg.model)
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items())
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"tensors": len(lines), "parameters": sum(p.numel() for p in model.parameters()), "names": fingerprint}


def public_names() -> list[str]:
    """What the code for both platforms imports from detectron2, detrex and detrex's projects."""
    names = set()
    for pattern in WRITTEN_FOR_BOTH:
        for path in (file for folder in ROOT.glob(pattern) for file in folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith(PACKAGES):
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return sorted(names)


def signature(name: str) -> list[str] | None:
    """Parameters that have a name, with their defaults, `device` aside; None for what cannot be called."""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        return None
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # written in C
        return None
    starred = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [_parameter(p) for p in parameters if p.name not in ("self", "device") and p.kind not in starred]


def _parameter(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if isinstance(default, int | float) and not isinstance(default, bool):
        default = float(default)
    plain = default is None or isinstance(default, bool | float | str | list | tuple)
    return f"{parameter.name}={list(default) if isinstance(default, tuple) else default}" if plain else parameter.name


def saved_names(files: dict[str, Path]) -> list[str]:
    """What configs that were saved as YAML call, by the names that saving gave it."""
    names: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for path in files.values():
            LazyConfig.save(LazyConfig.load(str(path)), saved := f"{folder}/config.yaml")
            names |= set(re.findall(r"_target_: ([\w.]+)", Path(saved).read_text(encoding="utf-8")))
    return sorted(names)


def record() -> dict[str, Any]:
    keep_linspace_values()
    files = config_files()
    configs = {name: resolved(path) for name, path in files.items()}
    return {
        "configs": configs,
        "models": {name: tensors(files[name]) for name in models(configs)},
        "saved": saved_names(files),
        "signatures": {name: signature(name) for name in public_names()},
    }


if __name__ == "__main__":
    if not is_upstream():
        sys.exit("error: there is no detectron2 and detrex here to record")
    RECORDED.write_text(json.dumps(record(), indent=0, sort_keys=True, default=str) + "\n", encoding="utf-8")
    print(f"Wrote {RECORDED}")
