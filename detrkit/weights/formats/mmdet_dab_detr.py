"""mmdetection's DAB-DETR."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..mmdet import layout, position
from ..parts import counters, resnet, transformer_layer
from ..sizes import rows, stacks
from ..tables import Drop, Rename
from .original_dab_detr import PROJECTIONS, SHARED

LAYER = {
    "ffn.layers.0.0": "ffns.0.layers.0.0",
    "ffn.layers.0.1": "ffns.0.activation",
    "ffn.layers.1": "ffns.0.layers.1",
    "norms": "norms",
}
ATTENTION = {
    f"{attention}.{theirs}": f"attentions.{number}.{ours}"
    for number, attention in enumerate(("self_attn", "cross_attn"))
    for theirs, ours in {
        **{f"{theirs}_proj": f"{ours}_proj" for theirs, ours in PROJECTIONS.items()},
        "out_proj": "out_proj",
    }.items()
}
BODY = (
    *resnet("backbone."),
    ("neck.convs.0.conv.*", "input_proj.*"),
    ("bbox_head.fc_cls.*", "class_embed.*"),
    *transformer_layer("encoder.layers.#.", "transformer.encoder.layers.#.", {"self_attn": "attentions.0", **LAYER}),
    *transformer_layer("decoder.layers.#.", "transformer.decoder.layers.#.", {**ATTENTION, **LAYER}),
    ("decoder.query_scale.*", "transformer.decoder.query_scale.*"),
    ("decoder.ref_point_head.*", "transformer.decoder.ref_point_head.*"),
    ("decoder.post_norm.*", "transformer.decoder.post_norm_layer.*"),
)
NAMES = Rename(
    *BODY,
    ("query_embedding.weight", "anchor_box_embed.weight"),
    ("patterns.weight", "transformer.patterns.weight"),
    ("bbox_head.fc_reg.*", "bbox_embed.*"),
    ("encoder.query_scale.*", "transformer.encoder.query_scale.*"),
    ("decoder.ref_anchor_head.*", "transformer.decoder.ref_anchor_head.*"),
)


def recognises(names: Collection[str]) -> bool:
    wanted = {"decoder.ref_anchor_head.layers.0.weight", "bbox_head.fc_cls.weight", "query_embedding.weight"}
    return wanted <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    temperature, offset = position(file, default=(20, 0.0))
    return Requirements(
        settings={
            "model.position_embedding.temperature": temperature,
            "model.position_embedding.offset": offset,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-3,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-5,
            "model.num_classes": rows(file, "bbox_head.fc_cls.weight"),
            "model.num_queries": rows(file, "query_embedding.weight"),
            "model.transformer.num_patterns": rows(file, "patterns.weight") if "patterns.weight" in file.state else 0,
            **stacks(
                file, encoder="encoder.layers.#.ffn.layers.0.0.weight", decoder="decoder.layers.#.ffn.layers.0.0.weight"
            ),
        },
    )


FORMAT = Format(
    name="mmdet_dab_detr",
    title="mmdetection's DAB-DETR",
    family="mmdet",
    detector="DABDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(
        counters(written=lambda state: True),
        Drop("*.ffn.activate.weight", "another name of a parameter"),  # mmcv 1 has the slope of PReLU twice
        NAMES,
        *SHARED,
    ),
    wrap=layout,
)
