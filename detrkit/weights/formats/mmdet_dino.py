"""mmdetection's DINO and Align-DETR: the same names; Align-DETR's neck has biases, and its positions are detrex's."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..mmdet import layout, position
from ..parts import counters, mlp, mmdet_swin, reordered_patch_merging, resnet, transformer_layer
from ..sizes import rows, stacks
from ..tables import Copies, Rename, ZeroBias

LAYER = {"ffn.layers": "ffns.0.layers", "norms": "norms"}
NAMES = Rename(
    *resnet("backbone."),
    *mmdet_swin("backbone."),
    ("neck.convs.#.conv.*", "neck.convs.#.conv.*"),
    ("neck.convs.#.gn.*", "neck.convs.#.norm.*"),
    ("neck.extra_convs.#.conv.*", "neck.extra_convs.#.conv.*"),
    ("neck.extra_convs.#.gn.*", "neck.extra_convs.#.norm.*"),
    ("level_embed", "transformer.level_embeds"),
    ("query_embedding.weight", "transformer.tgt_embed.weight"),
    ("memory_trans_fc.*", "transformer.enc_output.*"),
    ("memory_trans_norm.*", "transformer.enc_output_norm.*"),
    ("dn_query_generator.label_embedding.weight", "label_enc.weight"),
    ("bbox_head.cls_branches.#.*", "class_embed.#.*"),
    *mlp("bbox_head.reg_branches.#", "bbox_embed.#", (0, 2, 4)),
    *transformer_layer("encoder.layers.#.", "transformer.encoder.layers.#.", {"self_attn": "attentions.0", **LAYER}),
    *transformer_layer(
        "decoder.layers.#.",
        "transformer.decoder.layers.#.",
        {"self_attn": "attentions.0", "cross_attn": "attentions.1", **LAYER},
    ),
    ("decoder.ref_point_head.*", "transformer.decoder.ref_point_head.*"),
    ("decoder.norm.*", "transformer.decoder.norm.*"),
)


def recognises(names: Collection[str]) -> bool:
    return {"memory_trans_fc.weight", "bbox_head.cls_branches.0.weight", "query_embedding.weight"} <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    is_align_detr = "neck.convs.0.conv.bias" in file.state
    temperature, offset = position(file, default=(10000, -0.5) if is_align_detr else (20, 0.0))
    return Requirements(
        settings={
            "model.position_embedding.temperature": temperature,
            "model.position_embedding.offset": offset,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-5,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-3,
            "model.num_classes": rows(file, "bbox_head.cls_branches.0.weight"),
            "model.num_queries": rows(file, "query_embedding.weight"),
            **stacks(
                file, encoder="encoder.layers.#.ffn.layers.0.0.weight", decoder="decoder.layers.#.ffn.layers.0.0.weight"
            ),
        },
        must_be={"model.transformer.num_feature_levels": rows(file, "level_embed")},
    )


FORMAT = Format(
    name="mmdet_dino",
    title="mmdetection's DINO or Align-DETR",
    family="mmdet",
    detector="DINO",
    recognises=recognises,
    requirements=requirements,
    steps=(
        counters(written=lambda state: "neck.convs.0.conv.bias" not in state),
        *reordered_patch_merging("backbone."),
        NAMES,
        ZeroBias("neck.*.conv.weight", "neck.*.conv.bias", "zeros: the neck has no biases there"),
        Copies("class_embed.#.*", "transformer.decoder.class_embed.#.*"),
        Copies("bbox_embed.#.*", "transformer.decoder.bbox_embed.#.*"),
    ),
    wrap=layout,
)
