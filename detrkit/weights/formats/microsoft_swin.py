"""Microsoft's Swin Transformer, pretrained on ImageNet: a backbone alone."""

from collections.abc import Collection
from math import isqrt

from ..files import WeightsFile
from ..format import Format, Requirements
from ..parts import official_swin
from ..sizes import rows
from ..tables import Drop, Rename

TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"


def recognises(names: Collection[str]) -> bool:
    # timm has the same names, but for the merging, which belongs to the stage after it there.
    return {"patch_embed.proj.weight", TABLE, "layers.0.downsample.reduction.weight"} <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    window_size = (isqrt(rows(file, TABLE)) + 1) // 2
    return Requirements(
        settings={},
        must_be={
            "model.backbone.embed_dim": rows(file, "patch_embed.proj.weight"),
            "model.backbone.window_size": window_size,
        },
        notes=("the norms of the feature maps are not in the file: they begin at their initial value",),
    )


FORMAT = Format(
    name="microsoft_swin",
    title="Microsoft's Swin Transformer",
    family="microsoft",
    detector="",
    backbone="SwinTransformer",
    recognises=recognises,
    requirements=requirements,
    steps=(
        Drop("layers.#.blocks.#.attn_mask", "mask of one image size"),
        Drop("norm.*", "classifier"),
        Drop("head.*", "classifier"),
        Rename(*official_swin("")),
    ),
)
