"""IDEA-Research's DINO: one head for all decoder layers, norms in another order, 91 classes by COCO's category ids."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..original import InputProjections, LabelPadding, position, refuse_dilation
from ..parts import counters, official_swin, resnet, transformer_layer
from ..sizes import rows, stacks
from ..tables import Copies, EncoderHead, Rename, TheirCopies

FEED_FORWARD = {"linear1": "ffns.0.layers.0.0", "linear2": "ffns.0.layers.1"}
NAMES = Rename(
    *resnet("backbone.0.body."),
    *official_swin("backbone.0."),
    ("neck.*", "neck.*"),  # renamed by InputProjections
    ("transformer.level_embed", "transformer.level_embeds"),
    ("transformer.tgt_embed.weight", "transformer.tgt_embed.weight"),
    ("transformer.enc_output.*", "transformer.enc_output.*"),
    ("transformer.enc_output_norm.*", "transformer.enc_output_norm.*"),
    ("label_enc.weight", "label_enc.weight"),
    ("class_embed.#.*", "class_embed.#.*"),
    ("bbox_embed.#.*", "bbox_embed.#.*"),
    *transformer_layer(
        "transformer.encoder.layers.#.",
        "transformer.encoder.layers.#.",
        {"self_attn": "attentions.0", "norm1": "norms.0", "norm2": "norms.1", **FEED_FORWARD},
    ),
    *transformer_layer(
        "transformer.decoder.layers.#.",
        "transformer.decoder.layers.#.",
        {
            "self_attn": "attentions.0.attn",
            "cross_attn": "attentions.1",
            # Numbered by when they were written: norm2 follows self-attention, norm1 cross-attention.
            "norm2": "norms.0",
            "norm1": "norms.1",
            "norm3": "norms.2",
            **FEED_FORWARD,
        },
    ),
    ("transformer.decoder.ref_point_head.*", "transformer.decoder.ref_point_head.*"),
    ("transformer.decoder.norm.*", "transformer.decoder.norm.*"),
)


def recognises(names: Collection[str]) -> bool:
    return {"transformer.enc_out_class_embed.weight", "transformer.tgt_embed.weight", "label_enc.weight"} <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    refuse_dilation(file)
    return Requirements(
        settings={
            "model.position_embedding.temperature": position(file, default=20),
            "model.position_embedding.offset": 0.0,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-3,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-3,
            "model.num_classes": rows(file, "class_embed.0.weight"),
            "model.num_queries": rows(file, "transformer.tgt_embed.weight"),
            **stacks(
                file,
                encoder="transformer.encoder.layers.#.linear1.weight",
                decoder="transformer.decoder.layers.#.linear1.weight",
            ),
        },
        must_be={"model.transformer.num_feature_levels": rows(file, "transformer.level_embed")},
        notes=("boxes are clipped to the image here, and are not there",),
    )


FORMAT = Format(
    name="original_dino",
    title="IDEA-Research's DINO",
    family="original",
    detector="DINO",
    recognises=recognises,
    requirements=requirements,
    steps=(
        counters(),
        TheirCopies("class_embed.#.*", "transformer.decoder.class_embed.#.*"),
        TheirCopies("bbox_embed.#.*", "transformer.decoder.bbox_embed.#.*"),
        EncoderHead("transformer.enc_out_class_embed", "class_embed"),
        EncoderHead("transformer.enc_out_bbox_embed", "bbox_embed"),
        LabelPadding("label_enc.weight", "class_embed.0.weight"),
        InputProjections("input_proj"),
        NAMES,
        Copies("class_embed.#.*", "transformer.decoder.class_embed.#.*"),
        Copies("bbox_embed.#.*", "transformer.decoder.bbox_embed.#.*"),
    ),
)
