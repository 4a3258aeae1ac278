"""Attention maps of the branches of a decoder."""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from detrex.layers import ConditionalCrossAttention
from torch import Tensor, nn


@dataclass
class AttentionMaps:
    """Attention of a forward pass; B images, N queries.

    Attributes:
        attention: by branch (B, N, H, W), the mean of the heads of the last decoder layer; sums to 1 over a map.
        points: by branch (B, N, M, 2), x and y in [0, 1]; empty without task-aware queries.
    """

    attention: dict[str, Tensor] = field(default_factory=dict)
    points: dict[str, Tensor] = field(default_factory=dict)


def branches(decoder: nn.Module) -> dict[str, nn.Module]:
    """The cross-attentions of the last layer by the branch's name.

    Args:
        decoder: SD-DETR's, Conditional DETR's or DAB-DETR's, embedded or detrex's.

    Raises:
        ValueError: it has another kind of attention.
    """
    last = getattr(getattr(decoder, "layers", [None])[-1], "attentions", [None])[-1]
    if not isinstance(last, ConditionalCrossAttention):
        raise ValueError(
            f"{type(decoder).__name__} has no attention to every place of the image, unlike those of SD-DETR, "
            "Conditional DETR and DAB-DETR"
        )
    if not hasattr(decoder, "box_layers"):
        return {"class and box": last}
    return {"class": last, "box": decoder.box_layers[-1]["cross_attn"]}


@contextmanager
def capture_attention(model: nn.Module) -> Iterator[AttentionMaps]:
    """Capture the attention of the last forward pass of `model` inside the block.

    Raises:
        ValueError: see `branches`.
    """
    decoder = getattr(getattr(model, "transformer", None), "decoder", nn.Module())
    parts = branches(decoder)
    maps, size = AttentionMaps(), []

    def record_size(_: nn.Module, args: tuple) -> None:
        size[:] = args[0].shape[-2:]

    def record_points(_: nn.Module, args: tuple, queries: Any) -> None:
        maps.points.update(zip(parts, queries.points.permute(0, 2, 1, 3, 4).detach(), strict=True))

    def record_attention(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, _: Tensor) -> None:
            arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            maps.attention[name] = attention_weights(module, arguments).mean(1).unflatten(-1, tuple(size))

        return hook

    with ExitStack() as hooks:
        hooks.callback(model.transformer.register_forward_pre_hook(record_size).remove)
        if getattr(decoder, "task_queries", None) is not None:
            hooks.callback(decoder.task_queries.register_forward_hook(record_points).remove)
        for name, module in parts.items():
            hooks.callback(module.register_forward_hook(record_attention(name), with_kwargs=True).remove)
        yield maps


@torch.no_grad()
def attention_weights(module: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """The weights that a `ConditionalCrossAttention` gives to the tokens (Conditional DETR, eq. 4), which it does not
    return itself.

    Args:
        module: the attention.
        given: the arguments of its `forward` by name.

    Returns:
        (B, heads, N, S); each query's sum is 1.
    """

    def heads(x: Tensor) -> Tensor:
        x = x.float() if module.batch_first else x.float().transpose(0, 1)
        return x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)

    content = module.query_content_proj(given["query"]), module.key_content_proj(given["key"])
    position = module.query_pos_sine_proj(given["query_sine_embed"]), module.key_pos_proj(given["key_pos"])
    if given.get("is_first_layer"):
        content = content[0] + module.query_pos_proj(given["query_pos"]), content[1] + position[1]
    query, key = (torch.cat((heads(c), heads(p)), dim=-1) for c, p in zip(content, position, strict=True))
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    padding = given.get("key_padding_mask")
    return (scores if padding is None else scores.masked_fill(padding[:, None, None], -torch.inf)).softmax(-1)
