"""mmdetection's Conditional DETR."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..mmdet import layout, position
from ..parts import LINEAR, counters
from ..sizes import rows, stacks
from ..tables import Rename
from .mmdet_dab_detr import BODY

BOX_HEAD = ("reg_ffn.layers.0.0", "reg_ffn.layers.1", "fc_reg")
NAMES = Rename(
    *BODY,
    ("query_embedding.weight", "query_embed.weight"),
    *(
        (f"bbox_head.{theirs}.{name}", f"bbox_embed.layers.{number}.{name}")
        for number, theirs in enumerate(BOX_HEAD)
        for name in LINEAR
    ),
)


def recognises(names: Collection[str]) -> bool:
    wanted = {"decoder.layers.0.cross_attn.qpos_sine_proj.weight", "bbox_head.reg_ffn.layers.0.0.weight"}
    return wanted <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    temperature, offset = position(file, default=(10000, 0.0))
    return Requirements(
        settings={
            "model.position_embedding.temperature": temperature,
            "model.position_embedding.offset": offset,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-5,
            "model.num_classes": rows(file, "bbox_head.fc_cls.weight"),
            "model.num_queries": rows(file, "query_embedding.weight"),
            **stacks(
                file,
                encoder="encoder.layers.#.ffn.layers.0.0.weight",
                decoder="decoder.layers.#.ffn.layers.0.0.weight",
            ),
        },
    )


FORMAT = Format(
    name="mmdet_conditional_detr",
    title="mmdetection's Conditional DETR",
    family="mmdet",
    detector="ConditionalDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(counters(written=lambda state: True), NAMES),
    wrap=layout,
)
