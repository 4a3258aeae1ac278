"""The training parts of Co-DETR's files: auxiliary heads, and the buffers of averaged weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .parts import LINEAR, Pairs
from .tables import Each, NumberedScalars, Pattern, State, Step, Trace

QUERY_HEAD = "query_head."
DOWNSAMPLE: Pairs = [(f"{QUERY_HEAD}downsample.#.*", "collaboration.coarser.#.*")]
AUXILIARY_STEPS = (NumberedScalars("bbox_head.0.scales.#.scale", "bbox_head.0.scales"),)


def merging_of_positive_queries() -> Pairs:
    """Projections of the positive queries' boxes. They are numbered there: first the RoI head's, then ATSS's."""
    return [
        pair
        for number, head in enumerate(("faster_rcnn", "atss"))
        for pair in (
            (f"{QUERY_HEAD}transformer.aux_pos_trans.{number}.*", f"collaboration.contents.{head}.0.*"),
            (f"{QUERY_HEAD}transformer.aux_pos_trans_norm.{number}.*", f"collaboration.contents.{head}.1.*"),
        )
    ]


def auxiliary_heads() -> Pairs:
    """The proposal network, the Faster R-CNN head and the ATSS head as the heads of `collaboration`."""
    rcnn, atss = "collaboration.heads.faster_rcnn.", "collaboration.heads.atss."
    modules = {
        "rpn_head.rpn_conv": f"{rcnn}proposals.conv",
        "rpn_head.rpn_cls": f"{rcnn}proposals.class_pred",
        "rpn_head.rpn_reg": f"{rcnn}proposals.box_pred",
        "roi_head.0.bbox_head.shared_fcs.0": f"{rcnn}shared.1",
        "roi_head.0.bbox_head.shared_fcs.1": f"{rcnn}shared.3",
        "roi_head.0.bbox_head.fc_cls": f"{rcnn}class_pred",
        "roi_head.0.bbox_head.fc_reg": f"{rcnn}box_pred",
        "bbox_head.0.cls_convs.0.gn": f"{atss}class_branch.1",
        "bbox_head.0.reg_convs.0.gn": f"{atss}box_branch.1",
        "bbox_head.0.atss_cls": f"{atss}class_pred",
        "bbox_head.0.atss_reg": f"{atss}box_pred",
        "bbox_head.0.atss_centerness": f"{atss}centerness_pred",
    }
    return [
        *((f"{theirs}.{name}", f"{ours}.{name}") for theirs, ours in modules.items() for name in LINEAR),
        ("roi_head.0.bbox_head.shared_convs.#.conv.weight", f"{rcnn}convs.#.0.weight"),
        *((f"roi_head.0.bbox_head.shared_convs.#.gn.{name}", f"{rcnn}convs.#.1.{name}") for name in LINEAR),
        ("bbox_head.0.cls_convs.0.conv.weight", f"{atss}class_branch.0.weight"),
        ("bbox_head.0.reg_convs.0.conv.weight", f"{atss}box_branch.0.weight"),
        ("bbox_head.0.scales", f"{atss}level_scales"),
    ]


def swap_axes(weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Exchange the columns of x and y in a projection of embedded boxes, (…, 4·E): its own inverse."""
    x, y, sides = weight.tensor_split([weight.shape[-1] // 4, weight.shape[-1] // 2], dim=-1)
    return torch.cat([y, x, sides], dim=-1)


# Co-DINO's positive queries embed their boxes in the order x, y, w, h there, and y, x, w, h here as detrex does.
BOX_ORDER = Each(f"{QUERY_HEAD}transformer.aux_pos_trans.#.weight", swap_axes, swap_axes)


class HeadRows(Step):
    """The rows of one matrix there, one for each head, that are vectors of their own here.

    Args:
        whole: name of the matrix.
        parts: our names, in the order of the rows.
    """

    def __init__(self, whole: str, parts: Sequence[str]):
        self.whole, self.parts = whole, list(parts)

    def forward(self, state: State, trace: Trace) -> State:
        if self.whole not in state:
            return state
        rows = state[self.whole].unbind()
        trace.added.update({part: f"a row of {self.whole}" for part in self.parts})
        kept = {name: tensor for name, tensor in state.items() if name != self.whole}
        return kept | dict(zip(self.parts, rows, strict=True))

    def backward(self, state: State) -> State:
        if not set(self.parts) <= set(state):
            return state
        kept = {name: tensor for name, tensor in state.items() if name not in self.parts}
        return kept | {self.whole: torch.stack([state[part] for part in self.parts])}


class _EmaBuffers(Step):
    """mmdetection 2 keeps a buffer `ema_X` for each parameter X, with `_` for each `.`, and swaps the two before it
    saves: the parameter holds the average, and the buffer the weights that training would go on with."""

    def forward(self, state: State, trace: Trace) -> State:
        buffers = {f"ema_{name.replace('.', '_')}" for name in state} & set(state)
        trace.dropped.update(dict.fromkeys(sorted(buffers), "weights without averaging; the averaged ones are loaded"))
        return {name: tensor for name, tensor in state.items() if name not in buffers}

    def backward(self, state: State) -> State:
        return state


EMA_BUFFERS = _EmaBuffers()


class _GlobalPositions(Step):
    """Files of a ViT for squares of one size have tables of rotary positions for the blocks with global attention.
    Here they are computed for each map, and are the same for such a square."""

    TABLE = Pattern("backbone.rope_glb.*")
    BLOCK = Pattern("backbone.blocks.#.attn.rope.*")

    def forward(self, state: State, trace: Trace) -> State:
        shapes = {texts[0]: state[name].shape for name, texts in self.TABLE.names_in(state)}
        tables = [name for name, _ in self.TABLE.names_in(state)]
        tables += [name for name, texts in self.BLOCK.names_in(state) if state[name].shape == shapes.get(texts[1])]
        trace.dropped.update(dict.fromkeys(tables, "positions, which are computed here"))
        return {name: tensor for name, tensor in state.items() if name not in set(tables)}

    def backward(self, state: State) -> State:
        return state


GLOBAL_POSITIONS = _GlobalPositions()
