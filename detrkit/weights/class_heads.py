"""Class heads of one set of classes for a model of another set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .classes import class_rows, match_classes, pick_rows
from .tables import Pattern, State

BY_CLASS = ("class_embed.#.*", "class_embed.weight", "class_embed.bias", "label_enc.weight")
"""Tensors with a row for each class: the heads of the decoder layers, and the embedding of noisy labels."""

ENCODER_CLASS = "transformer.pos_trans.weight"
"""Where a detector has this, the encoder's class head tells objects from background in row 0, whatever their class."""


@dataclass
class ClassFit:
    """What became of the rows of class heads.

    Attributes:
        carried: classes whose rows were taken over, by name.
        initial: classes that begin anew.
        unnamed: heads that begin anew altogether, as the names of the file's classes are not known.
    """

    carried: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)
    unnamed: bool = False

    def __str__(self) -> str:
        if self.unnamed:
            return "class heads re-initialised, as the names of the file's classes are not known"
        parts = []
        if self.carried:
            parts.append(f"class rows by name: {_some(self.carried)}")
        if self.initial:
            parts.append(f"class rows re-initialised: {_some(self.initial)}")
        return "; ".join(parts)


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def num_classes(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes that a state dict of detrex's names has rows for; None if it has no class head."""
    for name in ("class_embed.0.weight", "class_embed.weight"):
        if name in state:
            return len(state[name])
    return None


def fit_class_heads(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    ours: Sequence[str],
    theirs: Sequence[str] | None,
    assumed: bool = False,
) -> tuple[State, ClassFit]:
    """Class heads of a file for a model of other classes: rows of the same class are taken, the others begin anew.

    Args:
        state: of the file, under detrex's names.
        model_state: of the model; its values are the initial ones.
        ours, theirs: names of the classes; None: not known.
        assumed: see `classes.match_classes`.
    """
    count, outputs = num_classes(state), num_classes(model_state)
    if count is None or outputs is None or len(ours) > outputs:
        return dict(state), ClassFit()
    rows = match_classes(ours, theirs, assumed)
    if rows is None:
        if count == outputs:
            return dict(state), ClassFit()
        rows = class_rows(ours, theirs or ())
    rows = [*rows, *[None] * (outputs - len(ours))]
    result = dict(state)
    for name in _class_tensors(state, model_state):
        result[name] = _picked(name, state, model_state[name], rows)
    if theirs is None:
        return result, ClassFit(unnamed=True)
    known = list(zip(ours, rows, strict=False))
    fit = ClassFit([name for name, row in known if row is not None], [name for name, row in known if row is None])
    return result, fit


def _class_tensors(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> list[str]:
    return [name for name in state if name in model_state and _kind(name) is not None]


def _kind(name: str) -> str | None:
    """How the rows of a tensor belong to classes; None if they do not."""
    name = name.removeprefix("transformer.decoder.")
    if any(Pattern(pattern).match(name) is not None for pattern in BY_CLASS):
        return "rows"
    if name.startswith("collaboration.heads.faster_rcnn.class_pred."):
        return "background last"
    if name.startswith("collaboration.heads.faster_rcnn.box_pred."):
        return "four rows each"
    return "rows" if name.startswith("collaboration.heads.atss.class_pred.") else None


def _picked(name: str, state: Mapping[str, Tensor], initial: Tensor, rows: Sequence[int | None]) -> Tensor:
    theirs, kind = state[name], _kind(name)
    if theirs.shape[1:] != initial.shape[1:]:
        return theirs  # another architecture, for the loader to report
    if kind == "background last":
        return pick_rows(theirs, initial, [*rows, len(theirs) - 1])
    if kind == "four rows each":
        if len(theirs) % 4 or len(initial) != 4 * len(rows):
            return theirs
        return pick_rows(theirs.unflatten(0, (-1, 4)), initial.unflatten(0, (-1, 4)), rows).flatten(0, 1)
    if ENCODER_CLASS in state and _is_last_head(name, state):
        return pick_rows(theirs, initial, [0, *[None] * (len(initial) - 1)])
    return pick_rows(theirs, initial, rows)


def _is_last_head(name: str, state: Mapping[str, Tensor]) -> bool:
    heads = Pattern("class_embed.#.*")
    found = heads.match(name.removeprefix("transformer.decoder."))
    return found is not None and int(found[0]) == max(int(texts[0]) for _, texts in heads.names_in(state))
