"""Two-way tables of tensor names, and the few tensor operations that a renaming is not enough for.

A `Step` maps a state dict of another code base towards detrex's names (`forward`) and back (`backward`). Patterns stand
for names: `#` is a number, `*` is any text. Each state dict is a plain `{name: tensor}`; inputs are never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass
class Trace:
    """What happened to the tensors of a file.

    Attributes:
        renamed: their name to ours; a name that is the same in both is listed too.
        dropped: names in the file that have no counterpart here, with the reason.
        added: names of ours that the file does not have, with their origin.
        unknown: names in the file that no rule knows.
    """

    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


class Pattern:
    """Names with numbers (`#`) and free text (`*`) in them, such as `encoder.layers.#.norms.*`."""

    def __init__(self, text: str):
        self.text = text
        self._pieces = re.split(r"([#*])", text)
        groups = {"#": r"(\d+)", "*": "(.+)"}
        self._regex = re.compile("".join(groups.get(piece) or re.escape(piece) for piece in self._pieces))

    def match(self, name: str) -> tuple[str, ...] | None:
        """The texts that `#` and `*` stand for in `name`; None if the name is not of this pattern."""
        found = self._regex.fullmatch(name)
        return found and found.groups()

    def fill(self, texts: Sequence[str]) -> str:
        """The name with these texts in place of `#` and `*`, in their order."""
        texts = iter(texts)
        return "".join(next(texts) if piece in ("#", "*") else piece for piece in self._pieces)

    def names_in(self, state: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each name of a state dict that matches, with its texts."""
        for name in state:
            if (texts := self.match(name)) is not None:
                yield name, texts


class Step:
    """One operation on a state dict, with its inverse."""

    def forward(self, state: State, trace: Trace) -> State:
        """Towards detrex's names."""
        raise NotImplementedError

    def backward(self, state: State) -> State:
        """Back to the names of the other code base."""
        raise NotImplementedError


class Rename(Step):
    """The table of a format: pairs of (their pattern, our pattern); the first that matches counts, in both directions.

    Names that match no pair are left out: `Trace.unknown` lists them on the way here, and `backward` refuses them.

    Raises:
        ValueError: two tensors of the file would get one name and differ; or a name of ours has no counterpart there.
    """

    def __init__(self, *pairs: tuple[str, str]):
        self.pairs = [(Pattern(theirs), Pattern(ours)) for theirs, ours in pairs]

    def forward(self, state: State, trace: Trace) -> State:
        result: State = {}
        for name, tensor in state.items():
            target = _renamed(name, self.pairs)
            if target is None:
                trace.unknown.append(name)
                continue
            if target in result and not same(result[target], tensor):
                first = next(theirs for theirs, ours in trace.renamed.items() if ours == target)
                raise ValueError(f"{first} and {name} are the same parameter here, {target}, but differ in the file")
            result[target] = tensor
            trace.renamed[name] = target
        return result

    def backward(self, state: State) -> State:
        inverse = [(ours, theirs) for theirs, ours in self.pairs]
        result = {name: _renamed(name, inverse) for name in state}
        if lost := [name for name, target in result.items() if target is None]:
            raise ValueError(f"{len(lost)} tensors have no counterpart there, such as {lost[0]}")
        return {result[name]: tensor for name, tensor in state.items()}


def _renamed(name: str, pairs: Iterable[tuple[Pattern, Pattern]]) -> str | None:
    for source, target in pairs:
        if (texts := source.match(name)) is not None:
            return target.fill(texts)
    return None


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; of tensors without data, whether their shapes are."""
    if a.shape != b.shape:
        return False
    return a.is_meta or b.is_meta or a.data_ptr() == b.data_ptr() or torch.equal(a, b)


class Drop(Step):
    """Leave out the tensors of a pattern; `restore` makes them again on the way back from what is there.

    Args:
        pattern: their names.
        reason: for the report.
        restore: the state dict on the way back to the tensors to add to it.
    """

    def __init__(self, pattern: str, reason: str, restore: Callable[[State], State] | None = None):
        self.pattern, self.reason, self.restore = Pattern(pattern), reason, restore

    def forward(self, state: State, trace: Trace) -> State:
        gone = [name for name, _ in self.pattern.names_in(state)]
        trace.dropped.update(dict.fromkeys(gone, self.reason))
        return {name: tensor for name, tensor in state.items() if name not in set(gone)}

    def backward(self, state: State) -> State:
        return state if self.restore is None else {**state, **self.restore(state)}


class Copies(Step):
    """One parameter under two names here: the file has it as `source`, and `copy` is added."""

    def __init__(self, source: str, copy: str):
        self.source, self.copy = Pattern(source), Pattern(copy)

    def forward(self, state: State, trace: Trace) -> State:
        copies = {self.copy.fill(texts): name for name, texts in self.source.names_in(state)}
        trace.added.update({copy: f"the same as {name}" for copy, name in copies.items()})
        return {**state, **{copy: state[name] for copy, name in copies.items()}}

    def backward(self, state: State) -> State:
        copies = {name: self.source.fill(texts) for name, texts in self.copy.names_in(state)}
        for copy, source in copies.items():
            if source in state and not same(state[source], state[copy]):
                raise ValueError(f"{source} and {copy} are one parameter, but differ")
        kept = {name: tensor for name, tensor in state.items() if name not in copies}
        return {**{source: state[copy] for copy, source in copies.items()}, **kept}


class TheirCopies(Step):
    """One parameter under two names there: `copy` is left out here and written again on the way back.

    Args:
        source, copy: patterns. A file may have the copy alone.
    """

    def __init__(self, source: str, copy: str):
        self._copies = Copies(source, copy)

    def forward(self, state: State, trace: Trace) -> State:
        trace.dropped.update({name: "another name of a parameter" for name, _ in self._copies.copy.names_in(state)})
        return self._copies.backward(state)

    def backward(self, state: State) -> State:
        return self._copies.forward(state, Trace())


class Stack(Step):
    """Several tensors there that are one here, stacked along the first dimension.

    Args:
        parts: patterns of their names, in order, with the same `#` and `*`.
        whole: pattern of the one name.
    """

    def __init__(self, parts: Sequence[str], whole: str):
        self.parts, self.whole = [Pattern(part) for part in parts], Pattern(whole)

    def forward(self, state: State, trace: Trace) -> State:
        result = dict(state)
        for first, texts in self.parts[0].names_in(state):
            names = [part.fill(texts) for part in self.parts]
            if all(name in state for name in names):
                whole = self.whole.fill(texts)
                result[whole] = torch.cat([result.pop(name) for name in names])
                trace.added[whole] = f"{first} and {len(names) - 1} more, stacked"
        return result

    def backward(self, state: State) -> State:
        result = dict(state)
        for name, texts in self.whole.names_in(state):
            pieces = result.pop(name).chunk(len(self.parts))
            result |= {part.fill(texts): piece for part, piece in zip(self.parts, pieces, strict=True)}
        return result


class NumberedScalars(Step):
    """Numbered tensors of one value each there that are one vector here.

    Args:
        parts: pattern of their names, with one `#`, counted from 0.
        whole: the one name.
    """

    def __init__(self, parts: str, whole: str):
        self.parts, self.whole = Pattern(parts), whole

    def forward(self, state: State, trace: Trace) -> State:
        names = {int(texts[0]): name for name, texts in self.parts.names_in(state)}
        if not names:
            return state
        result = {name: tensor for name, tensor in state.items() if name not in names.values()}
        result[self.whole] = torch.stack([state[names[number]].reshape(()) for number in sorted(names)])
        trace.added[self.whole] = f"{names[min(names)]} and {len(names) - 1} more, as one vector"
        return result

    def backward(self, state: State) -> State:
        if self.whole not in state:
            return state
        result = dict(state)
        values = result.pop(self.whole).unbind()
        return result | {self.parts.fill([str(number)]): value for number, value in enumerate(values)}


class EncoderHead(Step):
    """The head of the encoder's proposals, which has a name of its own there and is the last of a list here.

    Args:
        theirs: prefix of its name.
        heads: prefix of the list; the head gets the number after the list's last.
    """

    def __init__(self, theirs: str, heads: str):
        self.theirs, self.heads = Pattern(f"{theirs}.*"), Pattern(f"{heads}.#.*")

    def forward(self, state: State, trace: Trace) -> State:
        last = str(1 + max((int(texts[0]) for _, texts in self.heads.names_in(state)), default=-1))
        renames = {name: self.heads.fill([last, *texts]) for name, texts in self.theirs.names_in(state)}
        return {renames.get(name, name): tensor for name, tensor in state.items()}

    def backward(self, state: State) -> State:
        numbered = list(self.heads.names_in(state))
        last = max((int(texts[0]) for _, texts in numbered), default=-1)
        renames = {name: self.theirs.fill(texts[1:]) for name, texts in numbered if int(texts[0]) == last}
        return {renames.get(name, name): tensor for name, tensor in state.items()}


class Each(Step):
    """A tensor operation on every tensor of a pattern, with its inverse.

    Args:
        pattern: their names.
        forward, backward: (tensor, the whole state dict) to tensor.
    """

    def __init__(
        self,
        pattern: str,
        forward: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
        backward: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    ):
        self.pattern, self._forward, self._backward = Pattern(pattern), forward, backward

    def forward(self, state: State, trace: Trace) -> State:
        return {**state, **{name: self._forward(state[name], state) for name, _ in self.pattern.names_in(state)}}

    def backward(self, state: State) -> State:
        return {**state, **{name: self._backward(state[name], state) for name, _ in self.pattern.names_in(state)}}


class ZeroBias(Step):
    """Layers that have no bias there and one here: it is loaded as zero. On the way back a bias of zeros is left out.

    Args:
        weight, bias: patterns of the names of weights, and of the biases beside them.
        reason: for the report.
    """

    def __init__(self, weight: str, bias: str, reason: str):
        self.weight, self.bias, self.reason = Pattern(weight), Pattern(bias), reason

    def forward(self, state: State, trace: Trace) -> State:
        weights = {self.bias.fill(texts): state[name] for name, texts in self.weight.names_in(state)}
        new = {name: weight.new_zeros(len(weight)) for name, weight in weights.items() if name not in state}
        trace.added.update(dict.fromkeys(new, self.reason))
        return {**state, **new}

    def backward(self, state: State) -> State:
        biases = [name for name, _ in self.bias.names_in(state)]
        if any(state[name].is_meta or state[name].any() for name in biases):
            return state
        return {name: tensor for name, tensor in state.items() if name not in biases}
