"""Exported files: a `.safetensors` file with a detector's weights, and its config and classes as metadata.

Any reader of safetensors finds the weights, under the names of checkpoints. The metadata are text: the config (model
and preprocessing of images) in YAML, the classes and the input size in JSON. The files may come from strangers: the
config may call only what lies in MODEL_PACKAGES.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import LazyConfig
from detectron2.data import transforms as T
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from detrkit.config.projects import PROJECT_NAMES
from detrkit.config.safe_yaml import parse_yaml
from detrkit.config.test_augmentation import tta_options
from detrkit.datasets.classes import Classes
from detrkit.runtime.files import atomic_write
from detrkit.runtime.soft_nms import checked_threshold
from detrkit.runtime.weight_files import weights_problem

CONFIG, CLASSES, INPUT = "align_detr.config", "align_detr.classes", "align_detr.input"
THRESHOLD = "align_detr.score_threshold"  # may be missing
MODEL_PACKAGES = (
    "align_detr.modeling",
    *(name for name in PROJECT_NAMES if name != "align_detr"),
    "detectron2.data.transforms",
    "detectron2.layers",
    "detectron2.modeling",
    "detrex.layers",
    "detrex.modeling",
    "fvcore.transforms",
    "projects",
    "torch.nn",
)


class InputSize(NamedTuple):
    """Size of a model's input: the shorter side, and the limit of the longer side, in pixels."""

    short_edge: int
    max_size: int

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image of this size is resized to."""
        return tuple(T.ResizeShortestEdge.get_output_shape(height, width, self.short_edge, self.max_size))


class Exported(NamedTuple):
    """Config and classes in an exported file, and the score threshold if it was chosen."""

    cfg: DictConfig
    classes: Classes
    score_threshold: float | None = None


def input_size(cfg: DictConfig) -> InputSize:
    """Return the size that a config resizes its test images to.

    Raises:
        ValueError: they are not resized by `ResizeShortestEdge` alone.
    """
    steps = list(cfg.dataloader.test.mapper.augmentation)
    lengths = steps[0].get("short_edge_length") if len(steps) == 1 else None
    short = lengths if isinstance(lengths, int) or lengths is None else max(lengths)
    if not short:
        raise ValueError("dataloader.test.mapper.augmentation is not one ResizeShortestEdge: unknown input size")
    return InputSize(int(short), int(steps[0].get("max_size", 1 << 30)))


def test_options(cfg: DictConfig) -> dict[str, Any]:
    """Return the options of `train` that change detections, where they are on."""
    threshold, options = checked_threshold(cfg.train.get("soft_nms"), "train.soft_nms"), tta_options(cfg)
    return ({"soft_nms": threshold} if threshold else {}) | ({"test_aug": options.plain()} if options else {})


def threshold_metadata(score_threshold: float | None) -> dict[str, str]:
    """Return the entry of a file's metadata with the score threshold; {} without one."""
    return {} if score_threshold is None else {THRESHOLD: json.dumps(score_threshold)}


def threshold_in(metadata: Mapping[str, str], path: str | os.PathLike) -> float | None:
    """Return the score threshold in a file's metadata; None if there is none.

    Raises:
        ValueError: it is not a number from 0 to 1.
    """
    value = _json(metadata.get(THRESHOLD), path)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{path}: its metadata are damaged: {THRESHOLD} is not a number from 0 to 1")
    return float(value)


def write_exported(
    path: str | os.PathLike,
    state: Mapping[str, Tensor],
    cfg: DictConfig,
    classes: Classes,
    score_threshold: float | None = None,
) -> None:
    """Write a model's weights with its config and classes. On an error no file is changed.

    Args:
        cfg: its model and test preprocessing are written, and nothing that names folders or devices.
        score_threshold: the default of those who use the file; None if it was not chosen.

    Raises:
        ValueError: the config calls something outside MODEL_PACKAGES.
        OSError: the file cannot be written.
    """
    path = Path(path)
    text = _portable(cfg)
    parse_yaml(text, "the config", MODEL_PACKAGES)
    metadata = {
        "format": "pt",
        CONFIG: text,
        CLASSES: json.dumps(classes.plain(), ensure_ascii=False),
        INPUT: json.dumps(input_size(cfg)._asdict()),
        **threshold_metadata(score_threshold),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Shared parameters are written under each of their names, as checkpoints have them.
    content = save({name: tensor.cpu().clone().contiguous() for name, tensor in state.items()}, metadata)
    with atomic_write(path) as file:
        file.write(content)


def read_exported(path: str | os.PathLike) -> Exported | None:
    """Read config and classes of a `.safetensors` file; None if it has weights alone. No code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a safetensors file, or its config or classes were not written by `write_exported`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if problem := weights_problem(path):
        raise ValueError(problem)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if CONFIG not in metadata:
        return None
    cfg = parse_yaml(metadata[CONFIG], f"the config in {path}", MODEL_PACKAGES)
    classes = Classes.from_plain(_json(metadata.get(CLASSES), path), str(path))
    return Exported(cfg, classes, threshold_in(metadata, path))


def _json(text: str | None, path: str | os.PathLike) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata are damaged: {error}") from error


def _portable(cfg: DictConfig) -> str:
    """Return the part of a config that builds a detector, as YAML without references to the rest."""
    mapper = cfg.dataloader.test.mapper
    kept = {
        "model": OmegaConf.to_container(cfg.model, resolve=True),
        "train": {"device": "auto", "model_ema": {"enabled": False}} | test_options(cfg),
        "dataloader": {
            "test": {
                "mapper": {
                    "augmentation": OmegaConf.to_container(mapper.augmentation, resolve=True),
                    "img_format": mapper.get("img_format", "RGB"),
                }
            }
        },
    }
    if "device" in kept["model"]:
        kept["model"]["device"] = "${train.device}"
    with tempfile.TemporaryDirectory() as folder:
        LazyConfig.save(DictConfig(kept, flags={"allow_objects": True}), f"{folder}/config.yaml")
        return Path(folder, "config.yaml").read_text(encoding="utf-8")
