"""Auxiliary heads on the encoder's features, and decoder queries made from their positives (training only)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..heads import AuxiliaryHead, PaddedGroundTruth, Pyramid
from .queries import ContentFromBox, draw_queries

Decode = Callable[[Tensor, Tensor | None, Tensor, Tensor | None], dict]
PositiveLosses = Callable[[dict, Tensor, str], dict[str, Tensor]]


def auxiliary_heads(number: int | None = None, **heads: AuxiliaryHead | None) -> nn.ModuleDict:
    """Return the first `number` enabled heads by name.

    Args:
        number: K in the paper; None keeps all.
        heads: in order; None disables a head.

    Raises:
        ValueError: fewer than `number` heads are enabled.
    """
    on = {name: head for name, head in heads.items() if head is not None}
    if number is not None and not 0 <= number <= len(on):
        raise ValueError(
            f"heads.number={number}: {len(on)} heads are on ({', '.join(on) or 'none'}): choose 0 to {len(on)}"
        )
    return nn.ModuleDict(dict(list(on.items())[:number]))


class Collaboration(nn.Module):
    """The auxiliary heads, their feature pyramid, and the content embedding of positive queries.

    Args:
        embed_dim: D, channels of queries and tokens, a multiple of 32.
        heads: see `auxiliary_heads`. Each head gets all levels.
        strides: in pixels, finest first: the encoder's levels, then the added coarser level.
        num_decoder_layers: L; the losses of the heads are multiplied by `lambda_heads` * L.
        lambda_heads: λ₂ in the paper.
        lambda_queries: λ₁ in the paper, factor of the losses of positive queries; 0: no positive queries.
        max_positives, min_queries: see `draw_queries`.
        content: class of the embedding of positive queries: `ContentFromBox` for DINO's decoder, `ContentAndPosition`
            for Deformable DETR's.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: nn.ModuleDict,
        strides: Sequence[int],
        num_decoder_layers: int,
        lambda_heads: float = 2.0,
        lambda_queries: float = 1.0,
        max_positives: int = 300,
        min_queries: int = 9,
        content: Callable[[int], nn.Module] = ContentFromBox,
    ):
        super().__init__()
        if not (1 <= min_queries and 1 <= max_positives):
            raise ValueError(f"max_positives={max_positives}, min_queries={min_queries}: both must be at least 1")
        if lambda_heads < 0 or lambda_queries < 0:
            raise ValueError(f"lambda_heads={lambda_heads}, lambda_queries={lambda_queries}: both must be at least 0")
        self.embed_dim, self.strides = embed_dim, list(strides)
        self.head_weight, self.query_weight = lambda_heads * num_decoder_layers, lambda_queries
        self.max_positives, self.min_queries = max_positives, min_queries
        self.heads = heads
        self.coarser = nn.Sequential(
            nn.Conv2d(embed_dim, embed_dim, 3, stride=2, padding=1), nn.GroupNorm(32, embed_dim)
        )
        nn.init.xavier_uniform_(self.coarser[0].weight)
        nn.init.zeros_(self.coarser[0].bias)
        contents = heads if lambda_queries else ()
        self.contents = nn.ModuleDict({name: content(embed_dim) for name in contents})

    def pyramid(self, memory: Tensor, sizes: Sequence[tuple[int, int]], padding: Tensor, extent: Tensor) -> Pyramid:
        """Reshape the encoder's tokens (B, S, D) to maps, set `padding` (B, S) to zero, and add a coarser level.

        Raises:
            ValueError: the number of levels does not agree with the number of strides.
        """
        if len(sizes) + 1 != len(self.strides):
            raise ValueError(
                f"collaboration.strides={self.strides} has {len(self.strides)} levels: expected {len(sizes) + 1}, "
                f"the encoder's {len(sizes)} levels and a coarser one"
            )
        tokens = memory.masked_fill(padding[..., None], 0).transpose(1, 2)
        levels = tokens.split([height * width for height, width in sizes], dim=2)
        maps = [level.unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]
        return Pyramid([*maps, self.coarser(maps[-1])], self.strides, extent)

    def forward(
        self,
        pyramid: Pyramid,
        targets: Sequence[Mapping[str, Tensor]],
        decode: Decode,
        positive_losses: PositiveLosses,
    ) -> dict[str, Tensor]:
        """Weighted losses of the heads, `loss_HEAD_…`, and of the positive queries.

        Args:
            targets: per image `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1].
            decode: function of content (B, Q, D), position (B, Q, D) or None, boxes (B, Q, 4) and a self-attention
                mask; returns the outputs of all decoder layers.
            positive_losses: function of outputs, assigned ground truths (B, Q) and the head's suffix; returns weighted
                losses.
        """
        objects = PaddedGroundTruth.from_targets(targets, pyramid.extent)
        losses, queries, embeds = {}, {}, {}
        for name, head in self.heads.items():
            head_losses, candidates = head(pyramid, objects)
            losses |= {f"loss_{name}_{key}": self.head_weight * loss for key, loss in head_losses.items()}
            if name in self.contents:
                queries[name] = draw_queries(candidates, pyramid.extent, self.max_positives, self.min_queries)
                embeds[name] = self.contents[name](queries[name], candidates)
        if queries:
            boxes = {name: query.boxes for name, query in queries.items()}
            for name, outputs in self.decode_all(boxes, embeds, decode).items():
                query_losses = positive_losses(outputs, queries[name].assigned, f"_{name}")
                losses |= {key: self.query_weight * loss for key, loss in query_losses.items()}
        return losses

    def decode_all(
        self, boxes: Mapping[str, Tensor], embeds: Mapping[str, tuple[Tensor, Tensor | None]], decode: Decode
    ) -> dict[str, dict]:
        """Decode the queries of all heads in one pass, so that each layer projects the tokens once.

        A self-attention mask separates the heads.

        Args:
            boxes: (B, Q, 4) by head.
            embeds: content (B, Q, D) and position (B, Q, D) or None, by head in the same order.
        """
        contents, positions = zip(*embeds.values(), strict=True)
        all_boxes = torch.cat(list(boxes.values()), dim=1)
        counts = [content.shape[1] for content in contents]
        mask = None
        if len(counts) > 1:
            head = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(all_boxes.device)
            mask = head[:, None] != head
        position = None if positions[0] is None else torch.cat(positions, dim=1)
        outputs = decode(torch.cat(contents, dim=1), position, all_boxes, mask)
        return dict(zip(boxes, split_outputs(outputs, counts), strict=True))


def split_outputs(outputs: dict, counts: Sequence[int]) -> list[dict]:
    """Split a detector's outputs along the queries into parts of `counts` queries."""
    layers = [*outputs["aux_outputs"], outputs]
    by_layer = [
        [
            {"pred_logits": logits, "pred_boxes": boxes}
            for logits, boxes in zip(
                layer["pred_logits"].split(counts, dim=1), layer["pred_boxes"].split(counts, dim=1), strict=True
            )
        ]
        for layer in layers
    ]
    return [{**part[-1], "aux_outputs": list(part[:-1])} for part in zip(*by_layer, strict=True)]
