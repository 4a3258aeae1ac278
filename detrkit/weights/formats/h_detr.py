"""H-Deformable-DETR as its authors publish it: the names of Deformable DETR, 91 classes by COCO's category ids."""

from collections.abc import Collection
from typing import Any

from ..files import WeightsFile
from ..format import Format, Requirements
from ..original import InputProjections, refuse_dilation
from ..parts import counters, official_swin, resnet, transformer_layer
from ..sizes import rows, stacks
from ..tables import Copies, Rename, TheirCopies
from .original_dino import FEED_FORWARD

QUERIES = "query_embed.weight"
NAMES = Rename(
    *resnet("backbone.0.body."),
    *official_swin("backbone.0.body."),
    ("neck.*", "neck.*"),  # renamed by InputProjections
    (QUERIES, "query_embedding.weight"),
    ("transformer.level_embed", "transformer.level_embeds"),
    *((f"transformer.{part}.*", f"transformer.{part}.*") for part in ("enc_output", "enc_output_norm")),
    *((f"transformer.{part}.*", f"transformer.{part}.*") for part in ("pos_trans", "pos_trans_norm")),
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
            "norm2": "norms.0",  # norm2 follows self-attention, norm1 cross-attention
            "norm1": "norms.1",
            "norm3": "norms.2",
            **FEED_FORWARD,
        },
    ),
)


def recognises(names: Collection[str]) -> bool:
    wanted = {"transformer.pos_trans.weight", "transformer.level_embed", "transformer.encoder.layers.0.linear1.weight"}
    return wanted <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    refuse_dilation(file)
    return Requirements(
        settings={
            "model.position_embedding.temperature": 10000,
            "model.position_embedding.offset": -0.5,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-5,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-5,
            "model.mixed_selection": QUERIES in file.state,
            "model.num_classes": rows(file, "class_embed.0.weight"),
            **queries(file),
            **stacks(
                file,
                encoder="transformer.encoder.layers.#.linear1.weight",
                decoder="transformer.decoder.layers.#.linear1.weight",
            ),
        },
        must_be={"model.transformer.num_feature_levels": rows(file, "transformer.level_embed")},
        notes=("boxes are clipped to the image here, and are not there",),
    )


def queries(file: WeightsFile) -> dict[str, Any]:
    """How many of the queries are of either set. The options of the training say it; the embeddings only their sum,
    of which the published models have 300 or 900, and 1500."""
    options = file.extra_dict("args")
    names = ("num_queries_one2one", "num_queries_one2many")
    if all(type(options.get(name)) is int for name in names):
        return {f"model.{name}": options[name] for name in names}
    if QUERIES not in file.state:
        return {}
    total = rows(file, QUERIES)
    second = 1500 if total > 1500 else 0
    return {"model.num_queries_one2one": total - second, "model.num_queries_one2many": second}


FORMAT = Format(
    name="h_detr",
    title="the original H-Deformable-DETR",
    family="original",
    detector="HDeformableDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(
        counters(),
        TheirCopies("class_embed.#.*", "transformer.decoder.class_embed.#.*"),
        TheirCopies("bbox_embed.#.*", "transformer.decoder.bbox_embed.#.*"),
        InputProjections("input_proj"),
        NAMES,
        Copies("class_embed.#.*", "transformer.decoder.class_embed.#.*"),
        Copies("bbox_embed.#.*", "transformer.decoder.bbox_embed.#.*"),
    ),
)
