"""What a format of checkpoints is: a table of names, and what goes with the weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .files import WeightsFile
from .tables import State, Step, Trace

COUNTER = "num_batches_tracked"  # of batch norm, which no result depends on

DETECTORS = {
    "DINO": "projects.dino.modeling.DINO",
    "CoDINO": "projects.dino.modeling.DINO",  # without its training heads it is a DINO
    "CoDeformableDETR": "projects.h_deformable_detr.modeling.HDeformableDETR",  # likewise
    "HDeformableDETR": "projects.h_deformable_detr.modeling.HDeformableDETR",
    "DABDETR": "projects.dab_detr.modeling.DABDETR",
    "ConditionalDETR": "projects.conditional_detr.modeling.ConditionalDETR",
}
"""The detectors that formats convert to, by the public names of their classes."""


@dataclass(frozen=True)
class Requirements:
    """What must hold of a config for the weights of a file to give the results they were published with.

    Attributes:
        settings: config keys, such as `model.position_embedding.offset`, and their values.
        must_be: config keys whose value cannot be set by itself, as others depend on it.
        notes: differences that no key stands for, for the reader of the report.
    """

    settings: dict[str, Any]
    must_be: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format of checkpoints of another code base.

    Attributes:
        name: identifier, such as "mmdet_dino".
        title: for people.
        family: what `export-weights --format` calls the code base.
        detector: key of `DETECTORS`; "" for a backbone alone.
        recognises: whether a state dict with these names is of this format.
        requirements: of a file of this format.
        steps: the tables, in the order that they are applied on the way here.
        wrap: puts a converted state dict into what the other code base saves.
        refusal: why a recognised file cannot be converted; empty if it can.
        backbone: class that a backbone alone is of; "" for a whole detector.
    """

    name: str
    title: str
    family: str
    detector: str
    recognises: Callable[[Collection[str]], bool]
    requirements: Callable[[WeightsFile], Requirements]
    steps: tuple[Step, ...]
    wrap: Callable[[State, Mapping[str, Any]], dict[str, Any]] = lambda state, facts: {"model": state}
    refusal: str = ""
    backbone: str = ""

    def settings(self, file: WeightsFile) -> dict[str, Any]:
        """Config keys and the values that the weights were trained with."""
        return self.requirements(file).settings

    def to_ours(self, state: Mapping[str, Tensor]) -> tuple[State, Trace]:
        """A state dict of this format under detrex's names, and what happened to it.

        Raises:
            ValueError: the format cannot be converted; or the file contradicts itself.
        """
        if self.refusal:
            raise ValueError(self.refusal)
        trace = Trace()
        result = dict(state)
        for step in self.steps:
            result = step.forward(result, trace)
        return result, trace

    def to_theirs(self, state: Mapping[str, Tensor]) -> State:
        """The inverse: a detrex state dict under the names of this format. `to_ours` gives the same tensors back.

        Raises:
            ValueError: the format cannot be converted; or a tensor has no counterpart there.
        """
        if self.refusal:
            raise ValueError(self.refusal)
        result = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
        for step in reversed(self.steps):
            result = step.backward(result)
        return result
