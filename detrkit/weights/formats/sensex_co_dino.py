"""Sense-X's Co-DINO: mmdetection 2, with the names of mmdetection 3 but for the label embedding and Swin."""

from collections.abc import Collection

from ..co_detr import AUXILIARY_STEPS, BOX_ORDER, EMA_BUFFERS, GLOBAL_POSITIONS
from ..format import Format
from ..mmdet import layout
from ..parts import counters, eva02, official_swin
from .mmdet_co_dino import AFTER, HEAD, names, requirements

LABELS = f"{HEAD}label_embedding.weight"


def recognises(names: Collection[str]) -> bool:
    return {f"{HEAD}transformer.query_embed.weight", LABELS} <= set(names)


FORMAT = Format(
    name="sensex_co_dino",
    title="Sense-X's Co-DINO",
    family="sensex",
    detector="CoDINO",
    recognises=recognises,
    requirements=requirements,
    steps=(
        EMA_BUFFERS,
        GLOBAL_POSITIONS,
        counters(written=lambda state: True),
        *AUXILIARY_STEPS,
        BOX_ORDER,
        names(LABELS, [*official_swin("backbone."), *eva02("backbone.")]),
        *AFTER,
    ),
    wrap=layout,
)
