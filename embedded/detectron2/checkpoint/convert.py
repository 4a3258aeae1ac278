"""Load the weights of a file into a model: map names by rules, and report the result."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

_WEIGHTS = ("model", "state_dict", "ema_state", "ema_model")
"""Keys under which files keep their weights; the first existing one is used."""

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of DistributedDataParallel and `torch.compile`."""

_TORCHVISION = (
    (re.compile(r"^(conv1|bn1)\."), r"stem.\1."),
    (re.compile(r"^layer(\d)\."), lambda match: f"res{int(match[1]) + 1}."),
    (re.compile(r"\.bn(\d)\."), r".conv\1.norm."),
    (re.compile(r"\.downsample\.0\."), ".shortcut."),
    (re.compile(r"\.downsample\.1\."), ".shortcut.norm."),
)
"""Rules from torchvision's names of a ResNet to detectron2's. The layers are equal: the 3×3 has the stride."""

_TORCHVISION_BLOCK = "layer1.0.conv1.weight"
_STEM = "stem.conv1.weight"
_RESNET = re.compile(r"(stem|res\d)\.")

_COUNTER = "num_batches_tracked"  # of batch norm; only momentum=None uses it
_MAX_ROWS = 16
_MAX_SHAPES = 6


def state_dict_of(content: Any, source: str) -> dict[str, Tensor]:
    """Return the weights in the content of a file, without prefixes of wrappers.

    Args:
        source: name of the file, for errors.

    Raises:
        ValueError: the content has no weights, or one of them is not a tensor or an array of numbers.
    """
    if isinstance(content, Mapping) and "blobs" in content:
        raise ValueError(f"{source} has Caffe2's weights, for BGR images: use torchvision/R-50.pkl instead")
    weights = content
    for key in _WEIGHTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f'{source} is not a checkpoint of a model: expected weights under "model"')
    state = {str(name): _tensor(value, str(name), source) for name, value in weights.items()}
    for prefix in (*_WRAPPERS, *_WRAPPERS):  # in any order
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _tensor(value: Any, name: str, source: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        array = np.asarray(value)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    raise ValueError(f"{source} is not a checkpoint of a model: {name} must be a tensor, not {type(value).__name__}")


def rename(state: Mapping[str, Tensor], model_keys: Iterable[str]) -> dict[str, Tensor]:
    """Rename `state` to the model's names.

    torchvision's ResNets get detectron2's names; a single backbone becomes the model's `backbone`.
    """
    model_keys = set(model_keys)
    if _TORCHVISION_BLOCK in state and _TORCHVISION_BLOCK not in model_keys:
        state = {_detectron2_name(name): tensor for name, tensor in state.items()}
    if _STEM in state and _STEM not in model_keys and f"backbone.{_STEM}" in model_keys:
        state = {f"backbone.{name}" if _RESNET.match(name) else name: tensor for name, tensor in state.items()}
    return dict(state)


def _detectron2_name(name: str) -> str:
    for pattern, replacement in _TORCHVISION:
        name = pattern.sub(replacement, name)
    return name


@dataclass
class LoadReport:
    """Result of loading a file's weights. A shared parameter is listed under each of its names.

    Attributes:
        source: name of the file.
        loaded: names in the model whose values come from the file.
        missing_keys: names in the model that the file does not have; they keep their initial values.
        incorrect_shapes: (name, shape in the file, shape in the model) of different shapes; they keep initial values.
        unexpected_keys: names in the file that the model does not have.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing_keys: list[str] = field(default_factory=list)
    incorrect_shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Return whether file and model have the same weights."""
        return not (self.missing_keys or self.incorrect_shapes or self.unexpected_keys)

    def differences(self, limit: int = 3) -> str:
        """Return one line with the first names of each kind of difference; empty without differences."""
        shapes = [
            f"{name} {_size(in_file)} instead of {_size(in_model)}" for name, in_file, in_model in self.incorrect_shapes
        ]
        kinds = {"unknown": self.unexpected_keys, "missing": self.missing_keys, "of another shape": shapes}
        return "; ".join(
            f"{what}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
            for what, names in kinds.items()
            if names
        )

    def __str__(self) -> str:
        """Return a table by module, and the differences in shape."""
        total = len(self.loaded) + len(self.missing_keys) + len(self.incorrect_shapes)
        head = f"{self.source}: {len(self.loaded)} of the model's {total} tensors loaded"
        return head if self.complete else "\n".join([head, self._table(), *self._shapes()])

    def _table(self) -> str:
        groups: dict[str, list[list[str]]] = defaultdict(lambda: [[], [], []])
        resized = [name for name, *_ in self.incorrect_shapes]
        for kind, names in enumerate((self.loaded, self.missing_keys + resized, self.unexpected_keys)):
            for name in names:
                groups[_module(name)][kind].append(name)
        modules = list(groups)
        if len(modules) > _MAX_ROWS:
            rest = modules[_MAX_ROWS - 1 :]
            merged = [sum((groups.pop(module)[kind] for module in rest), []) for kind in range(3)]
            groups[f"{len(rest)} more"] = merged
        rows = [
            [module, *(len(names) or "" for names in kinds), next(iter(kinds[1] + kinds[2]), "")]
            for module, kinds in groups.items()
        ]
        headers = ["module", "loaded", "left at initial value", "ignored", "for example"]
        return tabulate(rows, headers, tablefmt="simple")

    def _shapes(self) -> list[str]:
        """Return a line for each difference in shape."""
        changes: dict[tuple, list[str]] = defaultdict(list)
        for name, in_file, in_model in self.incorrect_shapes:
            changes[in_file, in_model].append(name)
        lines = []
        for (in_file, in_model), names in list(changes.items())[:_MAX_SHAPES]:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            classes = " (another number of classes?)" if in_file[1:] == in_model[1:] else ""
            name = min(names, key=len)
            lines.append(f"not loaded: {name}{more}, {_size(in_file)} in the file, {_size(in_model)} here{classes}")
        if len(changes) > _MAX_SHAPES:
            lines.append(f"and {len(changes) - _MAX_SHAPES} other changes of shape")
        return lines


def _top(name: str) -> str:
    return name.partition(".")[0]


def _module(name: str) -> str:
    """Return the table's row for a name: its first part; for the transformer the first two parts."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first == "transformer" and len(rest) > 1 else first


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "one number"


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Load the matching weights of `state` into `model`, in the model's dtypes and on its devices.

    `rename` maps the names; one name of a shared parameter is enough. Missing weights and weights of another shape keep
    their initial values. The report does not list batch counters that only one side has.

    Args:
        source: name of the file, for the report and errors.

    Raises:
        ValueError: the architectures differ, with or without the backbone, or the depths of the ResNets differ. The
            model is unchanged.
    """
    source = PurePath(source).name
    ours = model.state_dict(keep_vars=True)
    theirs = rename(state, ours)
    report = LoadReport(source)
    fitting = {}
    for name, tensor in theirs.items():
        if name not in ours:
            report.unexpected_keys.append(name)
        elif tensor.shape != ours[name].shape:
            report.incorrect_shapes.append((name, tuple(tensor.shape), tuple(ours[name].shape)))
        else:
            fitting[name] = tensor
    filled = {id(ours[name]) for name in fitting}
    for name, tensor in ours.items():
        if id(tensor) in filled:
            report.loaded.append(name)
        elif name not in theirs:
            report.missing_keys.append(name)
    report.missing_keys, report.unexpected_keys = (
        [name for name in names if not name.endswith(_COUNTER)]
        for names in (report.missing_keys, report.unexpected_keys)
    )
    _check(report, fitting, theirs, ours)
    model.load_state_dict(fitting, strict=False)
    return report


def _check(
    report: LoadReport, fitting: Collection[str], in_file: Collection[str], in_model: Collection[str]
) -> None:
    # Usual cases fit for the most part: a file with only a backbone, or a model with another number of classes.
    _check_share(report, fitting, in_file, in_model)
    # Different detectors often share the backbone: compare their other common modules too.
    common = {_top(name) for name in in_model} - {"backbone"}
    without_backbone = [{name for name in names if _top(name) in common} for names in (in_file, in_model)]
    _check_share(report, without_backbone[0] & without_backbone[1], *without_backbone)
    file_blocks = _blocks([*report.loaded, *report.unexpected_keys])
    model_blocks = _blocks([*report.loaded, *report.missing_keys])
    for stage in _blocks(report.loaded):
        file_count, model_count = len(file_blocks[stage]), len(model_blocks[stage])
        if file_count != model_count:
            raise ValueError(
                f"{report.source} has a ResNet of another depth: {file_count} blocks in {stage}, this model's has "
                f"{model_count}; use weights of the same depth"
            )


def _check_share(
    report: LoadReport, fitting: Collection[str], in_file: Collection[str], in_model: Collection[str]
) -> None:
    if 2 * len(fitting) < min(len(in_file), len(in_model)):
        raise ValueError(
            f"{report.source} has weights of another architecture: {len(fitting)} of its {len(in_file)} tensors fit "
            f"the {len(in_model)} of this model; {report.differences()}"
        )


def _blocks(names: Iterable[str]) -> dict[str, set[str]]:
    """Return the blocks of each ResNet stage by the stage's name, such as "backbone.res4"."""
    blocks = defaultdict(set)
    for name in names:
        if match := re.match(r"(.*\bres\d)\.(\d+)\.", name):
            blocks[match[1]].add(match[2])
    return blocks
