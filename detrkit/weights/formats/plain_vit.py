"""A plain Vision Transformer with a class token, such as MAE's: a backbone alone."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..plain_vit import NAMES, REQUIRED, sizes_of_vit
from ..tables import Drop


def recognises(names: Collection[str]) -> bool:
    return set(names) >= REQUIRED and "blocks.0.ls1.gamma" not in names


def requirements(file: WeightsFile) -> Requirements:
    return sizes_of_vit(file)


FORMAT = Format(
    name="plain_vit",
    title="a plain ViT, such as MAE's",
    family="mae",
    detector="",
    backbone="ViT",
    recognises=recognises,
    requirements=requirements,
    steps=(Drop("decoder*", "decoder of the pretraining"), *NAMES),
)
