"""Pieces that several tables share: backbones, attention layers and feed-forward blocks.

Each function returns pairs of (their pattern, our pattern) for `tables.Rename`; `theirs` and `ours` are prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .tables import Drop, Each, State, Step

Pairs = list[tuple[str, str]]
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
LINEAR = ("weight", "bias")


def resnet(theirs: str, ours: str = "backbone.") -> Pairs:
    """torchvision's names in a ResNet as detectron2's. The stride lies in the 3x3 convolution in both."""
    pairs = [(f"{theirs}conv1.weight", f"{ours}stem.conv1.weight")]
    pairs += [(f"{theirs}bn1.{name}", f"{ours}stem.conv1.norm.{name}") for name in BATCH_NORM]
    for stage in (1, 2, 3, 4):
        block, res = f"{theirs}layer{stage}.#.", f"{ours}res{stage + 1}.#."
        pairs.append((f"{block}conv#.weight", f"{res}conv#.weight"))
        pairs += [(f"{block}bn#.{name}", f"{res}conv#.norm.{name}") for name in BATCH_NORM]
        pairs.append((f"{block}downsample.0.weight", f"{res}shortcut.weight"))
        pairs += [(f"{block}downsample.1.{name}", f"{res}shortcut.norm.{name}") for name in BATCH_NORM]
    return pairs


def counters(written: Callable[[State], bool] | None = None) -> Step:
    """Batch norm's `num_batches_tracked`, which nothing here reads.

    Args:
        written: whether to write counters of zero on the way back, beside each `running_var`, given the other tensors.
    """

    def zeros(state: State) -> State:
        norms = [name.removesuffix("running_var") for name in state if name.endswith(".running_var")]
        return {f"{norm}num_batches_tracked": torch.zeros((), dtype=torch.long) for norm in norms if written(state)}

    return Drop("*.num_batches_tracked", "counter of batch norm", zeros if written else None)


def official_swin(theirs: str = "backbone.", ours: str = "backbone.") -> Pairs:
    """The Swin Transformer of its authors, whose names detectron2 has as well."""
    parts = ("patch_embed", "layers", "norm0", "norm1", "norm2", "norm3")
    return [(f"{theirs}{part}.*", f"{ours}{part}.*") for part in parts] + [
        (f"{theirs}absolute_pos_embed", f"{ours}absolute_pos_embed")
    ]


def eva02(theirs: str = "backbone.", ours: str = "backbone.") -> Pairs:
    """EVA-02 with Sense-X's pyramid as the neck, whose names are the same here."""
    parts = ("patch_embed.*", "rope_win.*", "blocks.#.*", "out_norm.*", "pos_embed")
    return [(f"{theirs}{part}", f"{ours}{part}") for part in parts] + [("neck.p#.#.*", "neck.p#.#.*")]


def mmdet_swin(theirs: str = "backbone.", ours: str = "backbone.") -> Pairs:
    """mmdetection's Swin Transformer; `reordered_patch_merging` belongs to it."""
    block, ours_block = f"{theirs}stages.#.blocks.#.", f"{ours}layers.#.blocks.#."
    return [
        (f"{theirs}patch_embed.projection.*", f"{ours}patch_embed.proj.*"),
        (f"{theirs}patch_embed.norm.*", f"{ours}patch_embed.norm.*"),
        (f"{theirs}absolute_pos_embed", f"{ours}absolute_pos_embed"),
        (f"{block}attn.w_msa.*", f"{ours_block}attn.*"),
        (f"{block}ffn.layers.0.0.*", f"{ours_block}mlp.fc1.*"),
        (f"{block}ffn.layers.1.*", f"{ours_block}mlp.fc2.*"),
        (f"{block}norm#.*", f"{ours_block}norm#.*"),
        (f"{theirs}stages.#.downsample.*", f"{ours}layers.#.downsample.*"),
        *((f"{theirs}norm{stage}.*", f"{ours}norm{stage}.*") for stage in range(4)),
    ]


def merging_from_mmdet(tensor: Tensor) -> Tensor:
    """Columns of a patch merging, (…, 4·C), from mmdetection's order to that of Swin's authors.

    mmdetection concatenates the 2x2 neighbours channel by channel, row by row; Swin's authors concatenate neighbour by
    neighbour, column by column.
    """
    grouped = tensor.unflatten(-1, (-1, 4)).movedim(-1, -2)
    return grouped[..., [0, 2, 1, 3], :].flatten(-2)


def merging_to_mmdet(tensor: Tensor) -> Tensor:
    """The inverse of `merging_from_mmdet`."""
    grouped = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return grouped.movedim(-2, -1).flatten(-2)


def reordered_patch_merging(theirs: str = "backbone.") -> list[Step]:
    """The norm and the projection of mmdetection's patch merging in the order of Swin's authors."""

    def forward(tensor: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return merging_from_mmdet(tensor)

    def backward(tensor: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return merging_to_mmdet(tensor)

    parts = ("norm.weight", "norm.bias", "reduction.weight")
    return [Each(f"{theirs}stages.#.downsample.{part}", forward, backward) for part in parts]


def mlp(theirs: str, ours: str, numbers: tuple[int, ...]) -> Pairs:
    """A perceptron whose linear layers have these numbers there, and 0, 1, … here."""
    return [
        (f"{theirs}.{number}.{name}", f"{ours}.layers.{index}.{name}")
        for index, number in enumerate(numbers)
        for name in LINEAR
    ]


def transformer_layer(theirs: str, ours: str, modules: Mapping[str, str]) -> Pairs:
    """The modules of one kind of layer: their prefix to ours, weights and biases and all that is in them."""
    return [(f"{theirs}{source}.*", f"{ours}{target}.*") for source, target in modules.items()]
