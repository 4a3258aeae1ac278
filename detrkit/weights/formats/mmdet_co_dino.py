"""mmdetection's Co-DINO: the query head becomes the detector, the auxiliary heads `collaboration`."""

from collections.abc import Collection

from ..co_detr import AUXILIARY_STEPS, BOX_ORDER, DOWNSAMPLE, auxiliary_heads, merging_of_positive_queries
from ..files import WeightsFile
from ..format import Format, Requirements
from ..mmdet import layout, position
from ..parts import Pairs, counters, mlp, mmdet_swin, reordered_patch_merging, resnet
from ..sizes import rows, stacks
from ..tables import Copies, Rename, ZeroBias

HEAD = "query_head."
LABELS = f"{HEAD}dn_generator.label_embedding.weight"


def names(labels: str, backbone: Pairs) -> Rename:
    """The table, which Sense-X's files share but for the label embedding and a Swin backbone."""
    return Rename(
        *resnet("backbone."),
        *backbone,
        ("neck.convs.#.conv.*", "neck.convs.#.conv.*"),
        ("neck.convs.#.gn.*", "neck.convs.#.norm.*"),
        ("neck.extra_convs.#.conv.*", "neck.extra_convs.#.conv.*"),
        ("neck.extra_convs.#.gn.*", "neck.extra_convs.#.norm.*"),
        (f"{HEAD}transformer.level_embeds", "transformer.level_embeds"),
        (f"{HEAD}transformer.query_embed.weight", "transformer.tgt_embed.weight"),
        (f"{HEAD}transformer.enc_output.*", "transformer.enc_output.*"),
        (f"{HEAD}transformer.enc_output_norm.*", "transformer.enc_output_norm.*"),
        (f"{HEAD}transformer.encoder.layers.*", "transformer.encoder.layers.*"),
        (f"{HEAD}transformer.decoder.layers.*", "transformer.decoder.layers.*"),
        (f"{HEAD}transformer.decoder.norm.*", "transformer.decoder.norm.*"),
        *mlp(f"{HEAD}transformer.decoder.ref_point_head", "transformer.decoder.ref_point_head", (0, 2)),
        (labels, "label_enc.weight"),
        (f"{HEAD}cls_branches.#.*", "class_embed.#.*"),
        *mlp(f"{HEAD}reg_branches.#", "bbox_embed.#", (0, 2, 4)),
        *DOWNSAMPLE,
        *merging_of_positive_queries(),
        *auxiliary_heads(),
    )


AFTER = (
    ZeroBias("neck.*.conv.weight", "neck.*.conv.bias", "zeros: the neck has no biases there"),
    Copies("class_embed.#.*", "transformer.decoder.class_embed.#.*"),
    Copies("bbox_embed.#.*", "transformer.decoder.bbox_embed.#.*"),
)


def recognises(names: Collection[str]) -> bool:
    return {f"{HEAD}transformer.query_embed.weight", LABELS} <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    temperature, offset = position(file, default=(20, 0.0))
    return Requirements(
        settings={
            "model.position_embedding.temperature": temperature,
            "model.position_embedding.offset": offset,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-3,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-3,
            "model.num_classes": rows(file, f"{HEAD}cls_branches.0.weight"),
            "model.num_queries": rows(file, f"{HEAD}transformer.query_embed.weight"),
            **stacks(
                file,
                encoder=f"{HEAD}transformer.encoder.layers.#.ffns.0.layers.0.0.weight",
                decoder=f"{HEAD}transformer.decoder.layers.#.ffns.0.layers.0.0.weight",
            ),
        },
        must_be={"model.transformer.num_feature_levels": rows(file, f"{HEAD}transformer.level_embeds")},
        notes=(
            "the published figures include soft-NMS at an IoU of 0.8: train.soft_nms=0.8",
            "files trained with large-scale jitter are for images on a square canvas: model.canvas_size=1024 (R50), "
            "1280 (Swin-L) or 1536 (Swin-L and ViT-L from Objects365 on LVIS), as their configs have it",
        ),
    )


FORMAT = Format(
    name="mmdet_co_dino",
    title="mmdetection's Co-DINO",
    family="mmdet",
    detector="CoDINO",
    recognises=recognises,
    requirements=requirements,
    steps=(
        counters(written=lambda state: True),
        *reordered_patch_merging("backbone."),
        *AUXILIARY_STEPS,
        BOX_ORDER,
        names(LABELS, mmdet_swin("backbone.")),
        *AFTER,
    ),
    wrap=layout,
)
