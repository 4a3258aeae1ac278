"""Puts the packages on the path as `tools/` does, and reads the recorded numbers."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch is imported; see tools/command_line.py

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "projects"))

import align_detr  # noqa: E402, F401  (its import makes detectron2, detrex and projects.* importable)

GOLDEN = Path(__file__).parent / "golden"


def _nest(flat: dict) -> dict | list:
    """`{"a/0/b": x}` -> `{"a": [{"b": x}]}`: a `/` nests, consecutive integers are list positions."""
    tree: dict = {}
    for key, value in flat.items():
        *parents, leaf = key.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value

    def lists(node):
        if not isinstance(node, dict):
            return node
        node = {k: lists(v) for k, v in node.items()}
        if node and set(node) == {str(i) for i in range(len(node))}:
            return [node[str(i)] for i in range(len(node))]
        return node

    return lists(tree)


def load_case(name: str) -> SimpleNamespace:
    """A recorded case of `tests/golden`: `config`, `input`, `state` (flat, float32) and `output`."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    config = json.loads(str(arrays.pop("config", "{}")))
    source = config.pop("state_from", None)
    part = {"input": {}, "state": {}, "output": {}}
    for key, value in arrays.items():
        head, _, rest = key.partition("/")
        if head in part and value.dtype.kind in "fiub":
            part[head][rest] = torch.from_numpy(np.asarray(value))
    state = {k: v.float() if v.is_floating_point() else v for k, v in part["state"].items()}
    if source is not None:
        state = load_case(source).state
    return SimpleNamespace(
        name=name, config=config, input=_nest(part["input"]), state=state, output=_nest(part["output"])
    )


@pytest.fixture(scope="session")
def golden():
    """`golden("resnet")` reads `tests/golden/resnet.npz`; see `load_case`."""
    return load_case
