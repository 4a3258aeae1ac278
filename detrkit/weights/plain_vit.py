"""Plain Vision Transformers as files of backbones have them: names, sizes and layer scales."""

from __future__ import annotations

from math import isqrt

from .files import WeightsFile
from .format import Requirements
from .tables import Drop, Pattern, Rename, State, Step, Trace

REQUIRED = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}

NAMES: tuple[Step, ...] = (
    *(Drop(name, "not a part of the feature map") for name in ("cls_token", "mask_token", "norm.*", "fc_norm.*")),
    Drop("head.*", "classifier"),
    Rename(
        ("pos_embed", "backbone.net.pos_embed"),
        ("patch_embed.proj.*", "backbone.net.patch_embed.proj.*"),
        *(
            (f"blocks.#.{part}.*", f"backbone.net.blocks.#.{part}.*")
            for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        ),
    ),
)


def sizes_of_vit(file: WeightsFile) -> Requirements:
    """What a config with a ViT under `model.backbone.net` must have for a file's weights.

    Raises:
        ValueError: the position embedding is not of a square with a class token.
    """
    width, _, patch, _ = file.state["patch_embed.proj.weight"].shape
    tokens = file.state["pos_embed"].shape[1]
    side = isqrt(tokens - 1)
    if side**2 + 1 != tokens:
        raise ValueError(f"{file.path} has {tokens} positions, which is not a class token and a square: not supported")
    depth = sum(1 for _ in Pattern("blocks.#.attn.qkv.weight").names_in(file.state))
    return Requirements(
        settings={
            "model.backbone.net.pretrain_img_size": side * patch,
            "model.backbone.net.pretrain_use_cls_token": True,
        },
        must_be={
            "model.backbone.net.embed_dim": width,
            "model.backbone.net.depth": depth,
            "model.backbone.net.patch_size": patch,
        },
        notes=("relative positions and the feature pyramid are not in the file: they begin at their initial value",),
    )


class FoldedLayerScale(Step):
    """A factor for each channel after a linear layer there; here the layer is multiplied by it.

    Args:
        gamma: pattern of the factors' names.
        linear: pattern of the layers, with the same `#`.
    """

    def __init__(self, gamma: str, linear: str):
        self.gamma, self.linear = Pattern(gamma), Pattern(linear)

    def forward(self, state: State, trace: Trace) -> State:
        result = dict(state)
        for name, texts in self.gamma.names_in(state):
            factor, layer = result.pop(name), self.linear.fill(texts)
            trace.dropped[name] = "multiplied into the layer before it"
            result[f"{layer}.weight"] = factor[:, None] * state[f"{layer}.weight"]
            result[f"{layer}.bias"] = factor * state[f"{layer}.bias"]
        return result

    def backward(self, state: State) -> State:
        """The layer alone: a product has no unique factors."""
        return state
