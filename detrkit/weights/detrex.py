"""What detrex's rows on torchvision's ResNet share. All of its DC5 rows are of this kind."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .files import WeightsFile
from .format import Format, Requirements
from .parts import resnet
from .sizes import rows, stacks
from .tables import Rename

BODY = "backbone.body."
FEED_FORWARD = "layers.#.ffns.0.layers.0.0.weight"
MODULES = ("transformer", "input_proj", "class_embed", "bbox_embed")


def on_torchvision_resnet(name: str, title: str, detector: str, queries: str) -> Format:
    """The format of a detector on one feature map, whose names are detrex's but for the backbone.

    Args:
        queries: the tensor with one row for each query, which tells the detector.
    """
    modules: Sequence[str] = (*MODULES, queries.partition(".")[0])

    def recognises(names: Collection[str]) -> bool:
        return {f"{BODY}conv1.weight", queries} <= set(names)

    def requirements(file: WeightsFile) -> Requirements:
        return Requirements(
            settings={
                "model.num_classes": rows(file, "class_embed.weight"),
                "model.num_queries": rows(file, queries),
                **stacks(
                    file,
                    encoder=f"transformer.encoder.{FEED_FORWARD}",
                    decoder=f"transformer.decoder.{FEED_FORWARD}",
                ),
            },
            notes=("no tensor tells whether the last stage is dilated (DC5): the config decides",),
        )

    return Format(
        name=name,
        title=title,
        family="detrex-torchvision",
        detector=detector,
        recognises=recognises,
        requirements=requirements,
        steps=(Rename(*resnet(BODY), *((f"{module}.*", f"{module}.*") for module in modules)),),
    )
