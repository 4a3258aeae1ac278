"""Hugging Face's two-stage Deformable DETR with box refinement: 91 classes by COCO's category ids."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..huggingface import ENCODER_NORMS, FEED_FORWARD, NORMS, backbone, config_of, stacked_attention
from ..original import InputProjections
from ..parts import counters, transformer_layer
from ..sizes import rows, stacks
from ..tables import Copies, Rename

NAMES = Rename(
    *backbone(wrapped=False),
    ("neck.*", "neck.*"),  # renamed by InputProjections
    ("model.level_embed", "transformer.level_embeds"),
    *(
        (f"model.{part}.*", f"transformer.{part}.*")
        for part in ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm")
    ),
    ("model.decoder.class_embed.#.*", "class_embed.#.*"),
    ("model.decoder.bbox_embed.#.*", "bbox_embed.#.*"),
    # Files of older versions have the heads a second time.
    ("class_embed.#.*", "class_embed.#.*"),
    ("bbox_embed.#.*", "bbox_embed.#.*"),
    *transformer_layer(
        "model.encoder.layers.#.",
        "transformer.encoder.layers.#.",
        {"self_attn": "attentions.0", **ENCODER_NORMS, **FEED_FORWARD},
    ),
    ("model.decoder.layers.#.self_attn.in_proj_*", "transformer.decoder.layers.#.attentions.0.attn.in_proj_*"),
    *transformer_layer(
        "model.decoder.layers.#.",
        "transformer.decoder.layers.#.",
        {
            "self_attn.out_proj": "attentions.0.attn.out_proj",
            "encoder_attn": "attentions.1",
            **NORMS,
            **FEED_FORWARD,
        },
    ),
)


def recognises(names: Collection[str]) -> bool:
    wanted = {"model.pos_trans.weight", "model.decoder.layers.0.encoder_attn.sampling_offsets.weight"}
    return wanted <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    class_head = next(name for name in file.state if name.endswith("class_embed.0.weight"))
    proposals = config_of(file).get("two_stage_num_proposals")
    return Requirements(
        settings={
            "model.position_embedding.temperature": 10000,
            "model.position_embedding.offset": -0.5,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-5,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-5,
            "model.mixed_selection": False,
            "model.num_queries_one2many": 0,
            "model.k_one2many": 0,
            "model.num_classes": rows(file, class_head),
            # No tensor has as many rows as there are queries.
            **({} if proposals is None else {"model.num_queries_one2one": proposals}),
            **stacks(file, encoder="model.encoder.layers.#.fc1.weight", decoder="model.decoder.layers.#.fc1.weight"),
        },
        must_be={"model.transformer.num_feature_levels": rows(file, "model.level_embed")},
        notes=("boxes are clipped to the image here, and are not there",),
    )


FORMAT = Format(
    name="hf_deformable_detr",
    title="Hugging Face's two-stage Deformable DETR",
    family="huggingface",
    detector="HDeformableDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(
        counters(),
        *stacked_attention("model.decoder.layers.#.self_attn"),
        InputProjections("model.input_proj"),
        NAMES,
        Copies("class_embed.#.*", "transformer.decoder.class_embed.#.*"),
        Copies("bbox_embed.#.*", "transformer.decoder.bbox_embed.#.*"),
    ),
    wrap=lambda state, facts: state,
)
