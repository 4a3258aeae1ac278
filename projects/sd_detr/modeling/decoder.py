"""The decoder, with one branch that classifies and one that localises."""

import copy
from collections.abc import Iterator

import torch
from detrex.layers import get_sine_pos_embed
from projects.conditional_detr.modeling import ConditionalDetrTransformerDecoder
from torch import Tensor, nn

from .task_queries import TaskQueries

EXCHANGES = ("mean", "concatenation")


class SDDetrTransformerDecoder(ConditionalDetrTransformerDecoder):
    """Conditional DETR's decoder, whose layers attend to the image once for each task.

    Self-attention is shared, so that the branches exchange information; cross-attention, the scaling of its spatial
    query, and the feed-forward block are each task's own. The class branch has the parameters of Conditional DETR's
    decoder, the box branch those in `box_layers` and `box_query_scale`. With neither switch on, this is Conditional
    DETR's decoder.

    Args:
        split_attention: a branch for each task; otherwise one branch serves both.
        task_queries: branches start from salient points (see `TaskQueries`); otherwise from nothing, at the reference
            point.
        num_points: salient points of a query and task.
        exchange: what self-attention runs over. "mean": the mean of a query's branches; every branch gets the result.
            "concatenation": the queries of both branches, side by side.
        options: `ConditionalDetrTransformerDecoder`'s.

    Raises:
        ValueError: another exchange, or `batch_first`.
    """

    def __init__(
        self,
        split_attention: bool = True,
        task_queries: bool = True,
        num_points: int = 8,
        exchange: str = "mean",
        **options,
    ):
        if exchange not in EXCHANGES:
            raise ValueError(f"exchange={exchange!r}: choose one of {', '.join(EXCHANGES)}")
        if options.get("batch_first"):
            raise ValueError("batch_first=True: SD-DETR's decoder takes the queries first")
        super().__init__(**options)
        self.exchange = exchange
        self.num_branches = 2 if split_attention else 1
        if split_attention:
            self.box_layers = nn.ModuleList(nn.ModuleDict(copy.deepcopy(class_parts(x))) for x in self.layers)
            self.box_query_scale = copy.deepcopy(self.query_scale)
        self.task_queries = TaskQueries(self.embed_dim, self.num_branches, num_points) if task_queries else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        mask: Tensor,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Refine the queries (N, B, D) against the tokens (S, B, D).

        Args:
            query, query_pos: their content and the learned embedding of each.
            key, value, key_pos: the tokens, and the embedding of their position.
            mask: (B, H, W) bool, true in padding; S = H · W.
            key_padding_mask: (B, S) bool, true where not to attend.

        Returns:
            The states (L, B, N, 2, D) of the layers, class branch first, or (L, B, N, D) of a single branch; and the
            reference points (B, N, 2), x and y in [0, 1].
        """
        reference = self.ref_point_head(query_pos).sigmoid()
        if self.task_queries is None:
            embed = get_sine_pos_embed(reference, self.embed_dim // 2)
            branches = query.expand(self.num_branches, *query.shape)
            positions = embed.expand(self.num_branches, *embed.shape)
        else:
            content, positions, _ = self.task_queries(key, query_pos, reference, mask)
            branches = query + content

        tokens = {"key": key, "value": value, "key_pos": key_pos, "key_padding_mask": key_padding_mask}
        states = []
        for index, layer in enumerate(self.layers):
            parts, scales = zip(*self._branches(index), strict=True)
            spatial = positions
            if index > 0:
                spatial = [position * scale(x) for position, scale, x in zip(positions, scales, branches, strict=True)]
            branches = layer.norms[0](self._exchange(layer.attentions[0], branches, query_pos))
            branches = torch.stack(
                [
                    attend(part, x, query_pos=query_pos, query_sine_embed=y, is_first_layer=index == 0, **tokens)
                    for part, x, y in zip(parts, branches, spatial, strict=True)
                ]
            )
            states.append(branches if self.post_norm_layer is None else self.post_norm_layer(branches))
        states = torch.stack(states if self.return_intermediate else states[-1:]).permute(0, 3, 2, 1, 4)
        return states if self.num_branches == 2 else states.squeeze(3), reference.transpose(0, 1)

    def _branches(self, index: int) -> Iterator[tuple[dict[str, nn.Module] | nn.ModuleDict, nn.Module]]:
        """Per branch the parts of layer `index`, and what scales its spatial query."""
        yield class_parts(self.layers[index]), self.query_scale
        if self.num_branches == 2:
            yield self.box_layers[index], self.box_query_scale

    def _exchange(self, attention: nn.Module, branches: Tensor, query_pos: Tensor) -> Tensor:
        """Shared self-attention: (T, N, B, D) to the same."""
        if self.exchange == "mean" or self.num_branches == 1:
            shared = branches.mean(0)
            return branches + attention(shared, identity=torch.zeros_like(shared), query_pos=query_pos)
        side_by_side = attention(branches.flatten(0, 1), query_pos=query_pos.repeat(self.num_branches, 1, 1))
        return side_by_side.unflatten(0, branches.shape[:2])


def class_parts(layer: nn.Module) -> dict[str, nn.Module]:
    """What follows self-attention in a layer of Conditional DETR."""
    return {
        "cross_attn": layer.attentions[1],
        "cross_norm": layer.norms[1],
        "ffn": layer.ffns[0],
        "ffn_norm": layer.norms[2],
    }


def attend(parts: dict[str, nn.Module] | nn.ModuleDict, query: Tensor, **attention) -> Tensor:
    """Cross-attention and feed-forward block of a branch, each followed by a norm; (N, B, D) to the same."""
    query = parts["cross_norm"](parts["cross_attn"](query, **attention))
    return parts["ffn_norm"](parts["ffn"](query))
