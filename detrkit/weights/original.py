"""What the files of the methods' authors have in common, who all build on the code of Deformable DETR or DETR."""

from __future__ import annotations

import torch

from .files import WeightsFile
from .tables import Pattern, State, Step, Trace


def position(file: WeightsFile, default: float) -> float:
    """Temperature of the encoder's position embedding, as the options of the training in the file have it.

    Raises:
        ValueError: it differs between rows and columns.
    """
    options = file.extra_dict("args")
    by_axis = {options.get(name) for name in ("pe_temperatureH", "pe_temperatureW")} - {None}
    if len(by_axis) > 1:
        raise ValueError(f"{file.path} has another temperature of positions for rows than for columns: not supported")
    return next(iter(by_axis), default)


def refuse_dilation(file: WeightsFile) -> None:
    """Raise ValueError if the options in the file say that its backbone is dilated, in a detector of several levels."""
    if file.extra_dict("args").get("dilation"):
        raise ValueError(f"{file.path} has a dilated backbone (DC5), which this detector's configs do not have")


class InputProjections(Step):
    """Projections of the backbone's features, numbered through there: 1x1 convolutions of each feature, then 3x3
    convolutions for the coarser levels. Here these are `neck.convs` and `neck.extra_convs`.

    Args:
        theirs: prefix of their names.
    """

    def __init__(self, theirs: str):
        self._convs, self._norms = Pattern(f"{theirs}.#.0.*"), Pattern(f"{theirs}.#.1.*")

    def forward(self, state: State, trace: Trace) -> State:
        kernels = {
            int(texts[0]): state[name].shape[-1] for name, texts in self._convs.names_in(state) if texts[1] == "weight"
        }
        lateral = sum(kernel == 1 for kernel in kernels.values())
        result: State = {}
        for name, tensor in state.items():
            target = name
            for part, pattern in (("conv", self._convs), ("norm", self._norms)):
                if texts := pattern.match(name):
                    number = int(texts[0])
                    place = f"convs.{number}" if number < lateral else f"extra_convs.{number - lateral}"
                    target = f"neck.{place}.{part}.{texts[1]}"
            result[target] = tensor
        return result

    def backward(self, state: State) -> State:
        lateral = len({texts[0] for _, texts in Pattern("neck.convs.#.*").names_in(state)})
        result: State = {}
        for name, tensor in state.items():
            target = name
            for part, pattern in (("conv", self._convs), ("norm", self._norms)):
                for place, first in (("convs", 0), ("extra_convs", lateral)):
                    if texts := Pattern(f"neck.{place}.#.{part}.*").match(name):
                        target = pattern.fill([str(int(texts[0]) + first), texts[1]])
            result[target] = tensor
        return result


class LabelPadding(Step):
    """A label embedding with rows beyond the classes there, which no label uses. They are zeros on the way back.

    Args:
        embedding: its name.
        head: name of a class head's weight, which has as many rows as there are classes.
        extra: number of rows to write.
    """

    def __init__(self, embedding: str, head: str, extra: int = 1):
        self.embedding, self.head, self.extra = embedding, head, extra

    def forward(self, state: State, trace: Trace) -> State:
        if self.embedding not in state or self.head not in state:
            return state
        table, classes = state[self.embedding], len(state[self.head])
        if len(table) > classes:
            trace.dropped[f"{self.embedding}, from row {classes} on"] = "padding label"
        return {**state, self.embedding: table[:classes]}

    def backward(self, state: State) -> State:
        table = state[self.embedding]
        padding = table.new_zeros(self.extra, *table.shape[1:])
        return {**state, self.embedding: torch.cat([table, padding])}
