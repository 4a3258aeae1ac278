"""IDEA-Research's DAB-DETR: 91 classes by COCO's category ids."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements
from ..original import position
from ..parts import counters, resnet, transformer_layer
from ..sizes import rows, stacks
from ..tables import Copies, Rename, TheirCopies

ACTIVATION = {"activation": "ffns.0.activation"}
FEED_FORWARD = {"linear1": "ffns.0.layers.0.0", "linear2": "ffns.0.layers.1", **ACTIVATION}
PROJECTIONS = {
    "qcontent": "query_content",
    "qpos": "query_pos",
    "kcontent": "key_content",
    "kpos": "key_pos",
    "v": "value",
    "qpos_sine": "query_pos_sine",
}
NAMES = Rename(
    *resnet("backbone.0.body."),
    ("input_proj.*", "input_proj.*"),
    ("refpoint_embed.weight", "anchor_box_embed.weight"),
    ("transformer.patterns.weight", "transformer.patterns.weight"),
    ("class_embed.*", "class_embed.*"),
    ("bbox_embed.*", "bbox_embed.*"),
    ("transformer.encoder.query_scale.*", "transformer.encoder.query_scale.*"),
    *transformer_layer(
        "transformer.encoder.layers.#.",
        "transformer.encoder.layers.#.",
        {"self_attn": "attentions.0.attn", "norm1": "norms.0", "norm2": "norms.1", **FEED_FORWARD},
    ),
    *transformer_layer(
        "transformer.decoder.layers.#.",
        "transformer.decoder.layers.#.",
        {
            **{f"sa_{theirs}_proj": f"attentions.0.{ours}_proj" for theirs, ours in PROJECTIONS.items()},
            **{f"ca_{theirs}_proj": f"attentions.1.{ours}_proj" for theirs, ours in PROJECTIONS.items()},
            "self_attn.out_proj": "attentions.0.out_proj",
            "cross_attn.out_proj": "attentions.1.out_proj",
            "norm1": "norms.0",
            "norm2": "norms.1",
            "norm3": "norms.2",
            **FEED_FORWARD,
        },
    ),
    ("transformer.decoder.query_scale.*", "transformer.decoder.query_scale.*"),
    ("transformer.decoder.ref_point_head.*", "transformer.decoder.ref_point_head.*"),
    ("transformer.decoder.ref_anchor_head.*", "transformer.decoder.ref_anchor_head.*"),
    ("transformer.decoder.norm.*", "transformer.decoder.post_norm_layer.*"),
)
SHARED = (
    Copies("*.ffns.0.activation.weight", "*.ffns.0.layers.0.1.weight"),
    Copies("bbox_embed.*", "transformer.decoder.bbox_embed.*"),
)


def recognises(names: Collection[str]) -> bool:
    return {"refpoint_embed.weight", "transformer.decoder.layers.0.sa_qcontent_proj.weight"} <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    options = file.extra_dict("args")
    dilation = {"model.backbone.stages.res5_dilation": 2 if options["dilation"] else 1} if "dilation" in options else {}
    return Requirements(
        settings={
            "model.position_embedding.temperature": position(file, default=20),
            "model.position_embedding.offset": 0.0,
            "model.position_embedding.normalize": True,
            "model.inverse_sigmoid_eps": 1e-3,
            "model.transformer.decoder.inverse_sigmoid_eps": 1e-3,
            "model.num_classes": rows(file, "class_embed.weight"),
            "model.num_queries": rows(file, "refpoint_embed.weight"),
            "model.transformer.num_patterns": (
                rows(file, "transformer.patterns.weight") if "transformer.patterns.weight" in file.state else 0
            ),
            **stacks(
                file,
                encoder="transformer.encoder.layers.#.linear1.weight",
                decoder="transformer.decoder.layers.#.linear1.weight",
            ),
            **dilation,
        },
        notes=("boxes are clipped to the image here, and are not there",),
    )


FORMAT = Format(
    name="original_dab_detr",
    title="IDEA-Research's DAB-DETR",
    family="original",
    detector="DABDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(counters(), TheirCopies("bbox_embed.*", "transformer.decoder.bbox_embed.*"), NAMES, *SHARED),
)
