"""Hugging Face's DAB-DETR: 91 classes by COCO's category ids."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..huggingface import (
    ENCODER_NORMS,
    FEED_FORWARD,
    backbone,
    config_of,
    dilation,
    stacked_attention,
)
from ..parts import counters, transformer_layer
from ..sizes import rows, stacks
from ..tables import Rename
from .original_dab_detr import PROJECTIONS, SHARED

ATTENTION = {
    pair[0]: pair[1]
    for number, attention in enumerate(("self_attn", "cross_attn"))
    for pair in (
        *(
            (f"{attention}.{attention}_{name}_proj", f"attentions.{number}.{name}_proj")
            for name in PROJECTIONS.values()
        ),
        (f"{attention}.{attention}.output_proj", f"attentions.{number}.out_proj"),
        (f"{attention}.{attention}_layer_norm", f"norms.{number}"),
    )
}
NAMES = Rename(
    *backbone(wrapped=True),
    ("model.input_projection.*", "input_proj.*"),
    ("model.query_refpoint_embeddings.weight", "anchor_box_embed.weight"),
    ("model.patterns.weight", "transformer.patterns.weight"),
    ("class_embed.*", "class_embed.*"),
    ("bbox_predictor.*", "bbox_embed.*"),
    ("model.encoder.layers.#.self_attn.in_proj_*", "transformer.encoder.layers.#.attentions.0.attn.in_proj_*"),
    *transformer_layer(
        "model.encoder.layers.#.",
        "transformer.encoder.layers.#.",
        {
            "self_attn.out_proj": "attentions.0.attn.out_proj",
            "activation_fn": "ffns.0.activation",
            **ENCODER_NORMS,
            **FEED_FORWARD,
        },
    ),
    ("model.encoder.query_scale.*", "transformer.encoder.query_scale.*"),
    *transformer_layer(
        "model.decoder.layers.#.",
        "transformer.decoder.layers.#.",
        {
            **ATTENTION,
            "mlp.activation_fn": "ffns.0.activation",
            "mlp.final_layer_norm": "norms.2",
            **{f"mlp.{theirs}": ours for theirs, ours in FEED_FORWARD.items()},
        },
    ),
    ("model.decoder.query_scale.*", "transformer.decoder.query_scale.*"),
    ("model.decoder.ref_point_head.*", "transformer.decoder.ref_point_head.*"),
    ("model.decoder.ref_anchor_head.*", "transformer.decoder.ref_anchor_head.*"),
    ("model.decoder.layernorm.*", "transformer.decoder.post_norm_layer.*"),
)


def recognises(names: Collection[str]) -> bool:
    wanted = {"model.query_refpoint_embeddings.weight", "model.decoder.layers.0.self_attn.self_attn.output_proj.weight"}
    return wanted <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    axes = {config_of(file).get(f"temperature_{axis}", 20) for axis in ("height", "width")}
    if len(axes) > 1:
        raise ValueError(f"{file.path} has another temperature of positions for rows than for columns: not supported")
    return Requirements(
        settings={
            "model.position_embedding.temperature": axes.pop(),
            "model.position_embedding.offset": 0.0,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-5,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-5,
            "model.num_classes": rows(file, "class_embed.weight"),
            "model.num_queries": rows(file, "model.query_refpoint_embeddings.weight"),
            "model.transformer.num_patterns": (
                rows(file, "model.patterns.weight") if "model.patterns.weight" in file.state else 0
            ),
            **stacks(
                file, encoder="model.encoder.layers.#.fc1.weight", decoder="model.decoder.layers.#.mlp.fc1.weight"
            ),
            **dilation(file),
        },
        notes=("boxes are clipped to the image here, and are not there",),
    )


FORMAT = Format(
    name="hf_dab_detr",
    title="Hugging Face's DAB-DETR",
    family="huggingface",
    detector="DABDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(counters(), *stacked_attention("model.encoder.layers.#.self_attn"), NAMES, *SHARED),
    wrap=lambda state, facts: state,
)
