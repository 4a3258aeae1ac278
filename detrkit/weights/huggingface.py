"""What Hugging Face's DETRs have in common: names of layers, and the `config.json` beside a file."""

from __future__ import annotations

from typing import Any

from .files import WeightsFile
from .parts import Pairs, resnet
from .tables import Stack, Step

BACKBONE = "model.backbone.conv_encoder.model."
WRAPPED_BACKBONE = f"{BACKBONE}_backbone."
NORMS = {"self_attn_layer_norm": "norms.0", "encoder_attn_layer_norm": "norms.1", "final_layer_norm": "norms.2"}
ENCODER_NORMS = {"self_attn_layer_norm": "norms.0", "final_layer_norm": "norms.1"}
FEED_FORWARD = {"fc1": "ffns.0.layers.0.0", "fc2": "ffns.0.layers.1"}


def backbone(wrapped: bool) -> Pairs:
    """Both prefixes that a ResNet of timm has, depending on the version; written with or without the wrapper's."""
    prefixes = (WRAPPED_BACKBONE, BACKBONE) if wrapped else (BACKBONE, WRAPPED_BACKBONE)
    return [pair for prefix in prefixes for pair in resnet(prefix)]


def stacked_attention(attention: str) -> list[Step]:
    """The projections of an attention, of query, key and value apart there, as PyTorch's one.

    Args:
        attention: pattern of its prefix, such as `model.encoder.layers.#.self_attn`.
    """
    return [
        Stack([f"{attention}.{part}_proj.{name}" for part in "qkv"], f"{attention}.in_proj_{name}")
        for name in ("weight", "bias")
    ]


def config_of(file: WeightsFile) -> dict[str, Any]:
    """The `config.json` beside the file; empty if there is none."""
    return file.extra_dict("config")


def dilation(file: WeightsFile) -> dict[str, Any]:
    """The setting of a detector on one feature map, if the file's config speaks of it."""
    found = config_of(file).get("dilation")
    return {} if found is None else {"model.backbone.stages.res5_dilation": 2 if found else 1}
