"""DINOv2's Vision Transformers: a backbone alone, whose layer scales are multiplied into the layers before them."""

from collections.abc import Collection
from dataclasses import replace

from ..files import WeightsFile
from ..format import Format, Requirements
from ..plain_vit import NAMES, REQUIRED, FoldedLayerScale, sizes_of_vit
from ..tables import Drop


def recognises(names: Collection[str]) -> bool:
    return set(names) >= REQUIRED | {"blocks.0.ls1.gamma"}


def requirements(file: WeightsFile) -> Requirements:
    """The sizes of the ViT.

    Raises:
        ValueError: its perceptrons are gated, as in ViT-g.
    """
    if "blocks.0.mlp.w12.weight" in file.state:
        raise ValueError(f"{file.path} has gated perceptrons (ViT-g), which ViT does not have: take ViT-S, -B or -L")
    found = sizes_of_vit(file)
    registers = ("the register tokens are not used",) if "register_tokens" in file.state else ()
    return replace(found, notes=(*found.notes, *registers))


FORMAT = Format(
    name="dinov2",
    title="DINOv2's ViT",
    family="dinov2",
    detector="",
    backbone="ViT",
    recognises=recognises,
    requirements=requirements,
    steps=(
        Drop("register_tokens", "register tokens"),
        FoldedLayerScale("blocks.#.ls1.gamma", "blocks.#.attn.proj"),
        FoldedLayerScale("blocks.#.ls2.gamma", "blocks.#.mlp.fc2"),
        *NAMES,
    ),
)
