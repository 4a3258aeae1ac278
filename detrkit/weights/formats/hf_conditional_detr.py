"""Hugging Face's Conditional DETR: 91 classes by COCO's category ids."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..huggingface import ENCODER_NORMS, FEED_FORWARD, NORMS, backbone, dilation, stacked_attention
from ..parts import counters, transformer_layer
from ..sizes import rows, stacks
from ..tables import Rename
from .original_dab_detr import PROJECTIONS

NAMES = Rename(
    *backbone(wrapped=False),
    ("model.input_projection.*", "input_proj.*"),
    ("model.query_position_embeddings.weight", "query_embed.weight"),
    ("class_labels_classifier.*", "class_embed.*"),
    ("bbox_predictor.*", "bbox_embed.*"),
    ("model.encoder.layers.#.self_attn.in_proj_*", "transformer.encoder.layers.#.attentions.0.attn.in_proj_*"),
    *transformer_layer(
        "model.encoder.layers.#.",
        "transformer.encoder.layers.#.",
        {"self_attn.out_proj": "attentions.0.attn.out_proj", **ENCODER_NORMS, **FEED_FORWARD},
    ),
    *transformer_layer(
        "model.decoder.layers.#.",
        "transformer.decoder.layers.#.",
        {
            **{f"sa_{theirs}_proj": f"attentions.0.{ours}_proj" for theirs, ours in PROJECTIONS.items()},
            **{f"ca_{theirs}_proj": f"attentions.1.{ours}_proj" for theirs, ours in PROJECTIONS.items()},
            "self_attn.out_proj": "attentions.0.out_proj",
            "encoder_attn.out_proj": "attentions.1.out_proj",
            **NORMS,
            **FEED_FORWARD,
        },
    ),
    ("model.decoder.query_scale.*", "transformer.decoder.query_scale.*"),
    ("model.decoder.ref_point_head.*", "transformer.decoder.ref_point_head.*"),
    ("model.decoder.layernorm.*", "transformer.decoder.post_norm_layer.*"),
)


def recognises(names: Collection[str]) -> bool:
    return {"class_labels_classifier.weight", "model.decoder.layers.0.sa_qcontent_proj.weight"} <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    return Requirements(
        settings={
            "model.position_embedding.temperature": 10000,
            "model.position_embedding.offset": 0.0,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-5,
            "model.num_classes": rows(file, "class_labels_classifier.weight"),
            "model.num_queries": rows(file, "model.query_position_embeddings.weight"),
            **stacks(file, encoder="model.encoder.layers.#.fc1.weight", decoder="model.decoder.layers.#.fc1.weight"),
            **dilation(file),
        },
        notes=("boxes are clipped to the image here, and are not there",),
    )


FORMAT = Format(
    name="hf_conditional_detr",
    title="Hugging Face's Conditional DETR",
    family="huggingface",
    detector="ConditionalDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(counters(), *stacked_attention("model.encoder.layers.#.self_attn"), NAMES),
    wrap=lambda state, facts: state,
)
