"""Hugging Face's one-stage Deformable DETR, which no detector here corresponds to."""

from collections.abc import Collection

from ..files import WeightsFile
from ..format import Format, Requirements

REFUSAL = (
    "it is a one-stage Deformable DETR, which has no counterpart here: take the two-stage one with box refinement, "
    "SenseTime/deformable-detr-with-box-refine-two-stage"
)


def recognises(names: Collection[str]) -> bool:
    wanted = {"model.reference_points.weight", "model.decoder.layers.0.encoder_attn.sampling_offsets.weight"}
    return wanted <= set(names)


def requirements(file: WeightsFile) -> Requirements:
    raise ValueError(f"{file.path} cannot be used: {REFUSAL}")


FORMAT = Format(
    name="hf_deformable_detr_one_stage",
    title="Hugging Face's one-stage Deformable DETR",
    family="huggingface",
    detector="HDeformableDETR",
    recognises=recognises,
    requirements=requirements,
    steps=(),
    refusal=REFUSAL,
)
