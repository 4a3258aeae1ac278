"""Class heads of a detector that starts from a checkpoint with other classes."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from detrkit.datasets.annotations import class_key, same_classes, shortened
from detrkit.datasets.classes import Classes
from detrkit.weights import convert, encoder_objectness, local_file, look_at

from .randomness import random_states_kept

logger = logging.getLogger(__name__)


class ClassRows(NamedTuple):
    """Meaning of the first dimension of a tensor of a class head.

    Attributes:
        per_class: rows of each class.
        others: rows after those of all classes, such as one for the background.
    """

    per_class: int
    others: int


@contextmanager
def class_heads_matched(
    cfg: DictConfig,
    model: nn.Module,
    checkpoint: str | os.PathLike,
    known: Classes | None,
    outputs: Classes | None,
) -> Iterator[None]:
    """Match the rows of class heads by class name, on exit of a block that loads the checkpoint.

    Rows of classes that the checkpoint does not know keep their initial values. If the names of either side are not
    known, the weights stay as the block loaded them.

    Args:
        cfg: the config of the model, with `model.num_classes`.
        checkpoint: a `.pth` or `.safetensors` file of this project, or of a format that `detrkit.weights` knows.
        known: the classes of the checkpoint's outputs.
        outputs: the classes of the model's outputs.
    """
    ours = model.state_dict()
    objectness = {name: ours[name] for name in encoder_objectness(ours)}
    if known is None or outputs is None or same_classes(known.names, outputs.names):
        yield
        _keep_objectness(objectness, checkpoint)
        return
    rows = {name: row for name, row in class_rows(cfg, model).items() if name not in objectness}
    initial = {name: ours[name].clone() for name in rows}
    yield
    _keep_objectness(objectness, checkpoint)
    state = _weights(checkpoint)
    places = {class_key(name): place for place, name in enumerate(known.names)}
    pairs = [(new, places[key]) for new, key in enumerate(map(class_key, outputs.names)) if key in places]
    for name, (per_class, others) in rows.items():
        weights = state.get(name)
        count = 0 if weights is None else (len(weights) - others) // per_class
        if count < len(known.names) or weights.shape[1:] != initial[name].shape[1:]:
            continue  # keep what the block loaded
        merged = initial[name]
        for new, old in pairs:
            merged[new * per_class : (new + 1) * per_class] = weights[old * per_class : (old + 1) * per_class]
        if others:
            merged[-others:] = weights[-others:]
        ours[name].copy_(merged)
    kept = [outputs.names[new] for new, _ in pairs]
    anew = [name for name in outputs.names if class_key(name) not in places]
    logger.info(
        "Class heads: weights of %s by name for %s; initial weights for %s",
        checkpoint,
        shortened(kept) or "no class",
        shortened(anew) or "no class",
    )


def _keep_objectness(heads: dict[str, Tensor], checkpoint: str | os.PathLike) -> None:
    """Load row 0 of the encoder's class head if the head has another number of rows in the checkpoint.

    That row scores the proposals of any class.
    """
    if not heads or local_file(os.fspath(checkpoint)) is None:
        return
    try:
        state = _weights(checkpoint)
    except ValueError:  # only the checkpointer reads such files, and their number of classes is the model's
        return
    for name, ours in heads.items():
        theirs = state.get(name)
        if theirs is not None and theirs.shape != ours.shape and theirs.shape[1:] == ours.shape[1:]:
            ours[0].copy_(theirs[0])


def class_rows(cfg: DictConfig, model: nn.Module) -> dict[str, ClassRows]:
    """Find the tensors whose first dimension counts classes: they are larger in a model with one more class.

    {} if the config has no `model.num_classes`.
    """
    larger = copy.deepcopy(cfg.model)
    count = larger.get("num_classes")
    if count is None:
        return {}
    larger.num_classes = count + 1
    with random_states_kept():
        others = instantiate(larger).state_dict()
    rows = {}
    for name, tensor in model.state_dict().items():
        if tensor.dim() and name in others and (per_class := len(others[name]) - len(tensor)) > 0:
            rows[name] = ClassRows(per_class, len(tensor) - count * per_class)
    return rows


def _weights(checkpoint: str | os.PathLike) -> dict[str, Tensor]:
    return convert(look_at(local_file(os.fspath(checkpoint)), data=True)).state
