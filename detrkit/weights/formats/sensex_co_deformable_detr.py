"""Sense-X's Co-Deformable-DETR: its query head is a two-stage Deformable DETR with mixed query selection."""

from collections.abc import Collection

from ..co_detr import AUXILIARY_STEPS, DOWNSAMPLE, EMA_BUFFERS, HeadRows, auxiliary_heads
from ..files import WeightsFile
from ..format import Format, Requirements
from ..mmdet import layout, position
from ..parts import counters, mlp, official_swin, resnet
from ..sizes import rows, stacks
from ..tables import Copies, Rename, ZeroBias

HEAD = "query_head."
QUERIES = f"{HEAD}query_embedding.weight"
POSITIVES = ("faster_rcnn", "atss")  # the order in which the positive queries are numbered there
NAMES = Rename(
    *resnet("backbone."),
    *official_swin("backbone."),
    ("neck.convs.#.conv.*", "neck.convs.#.conv.*"),
    ("neck.convs.#.gn.*", "neck.convs.#.norm.*"),
    ("neck.extra_convs.#.conv.*", "neck.extra_convs.#.conv.*"),
    ("neck.extra_convs.#.gn.*", "neck.extra_convs.#.norm.*"),
    (QUERIES, "query_embedding.weight"),
    *(
        (f"{HEAD}transformer.{part}", f"transformer.{part}")
        for part in (
            "level_embeds",
            "encoder.layers.*",
            "decoder.layers.*",
            "enc_output.*",
            "enc_output_norm.*",
            "pos_trans.*",
            "pos_trans_norm.*",
        )
    ),
    (f"{HEAD}cls_branches.#.*", "class_embed.#.*"),
    *mlp(f"{HEAD}reg_branches.#", "bbox_embed.#", (0, 2, 4)),
    *DOWNSAMPLE,
    *(
        pair
        for number, head in enumerate(POSITIVES)
        for theirs, ours in (
            ("aux_pos_trans", "box.0"),
            ("aux_pos_trans_norm", "box.1"),
            ("pos_feats_trans", "feature.0"),
            ("pos_feats_norm", "feature.1"),
        )
        for pair in [(f"{HEAD}transformer.{theirs}.{number}.*", f"collaboration.contents.{head}.{ours}.*")]
    ),
    ("collaboration.contents.*", "collaboration.contents.*"),  # renamed by HeadRows
    *auxiliary_heads(),
)


def recognises(names: Collection[str]) -> bool:
    return {QUERIES, f"{HEAD}transformer.pos_trans.weight"} <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    temperature, offset = position(file, default=(10000, -0.5))
    return Requirements(
        settings={
            "model.position_embedding.temperature": temperature,
            "model.position_embedding.offset": offset,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-5,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-5,
            "model.mixed_selection": True,
            "model.num_classes": rows(file, f"{HEAD}cls_branches.0.weight"),
            "model.num_queries_one2one": rows(file, QUERIES),
            "model.num_queries_one2many": 0,
            "model.k_one2many": 0,
            **stacks(
                file,
                encoder=f"{HEAD}transformer.encoder.layers.#.ffns.0.layers.0.0.weight",
                decoder=f"{HEAD}transformer.decoder.layers.#.ffns.0.layers.0.0.weight",
            ),
        },
        must_be={"model.transformer.num_feature_levels": rows(file, f"{HEAD}transformer.level_embeds")},
    )


FORMAT = Format(
    name="sensex_co_deformable_detr",
    title="Sense-X's Co-Deformable-DETR",
    family="sensex",
    detector="CoDeformableDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(
        EMA_BUFFERS,
        counters(written=lambda state: True),
        *AUXILIARY_STEPS,
        HeadRows(
            f"{HEAD}transformer.head_pos_embed.weight",
            [f"collaboration.contents.{head}.position_shift" for head in POSITIVES],
        ),
        NAMES,
        ZeroBias("neck.*.conv.weight", "neck.*.conv.bias", "zeros: the neck has no biases there"),
        Copies("class_embed.#.*", "transformer.decoder.class_embed.#.*"),
        Copies("bbox_embed.#.*", "transformer.decoder.bbox_embed.#.*"),
    ),
    wrap=layout,
)
