"""Decoder with one branch for classification and one for localisation."""

import copy
from collections.abc import Iterator

import torch
from detrex.layers import get_sine_pos_embed
from projects.conditional_detr.modeling import ConditionalDetrTransformerDecoder
from torch import Tensor, nn

from .task_queries import TaskQueries

EXCHANGES = ("mean", "concatenation")


class SDDetrTransformerDecoder(ConditionalDetrTransformerDecoder):
    """Conditional DETR's decoder with separate cross-attention for each task.

    The branches share self-attention, through which they exchange information. Cross-attention, the scaling of its
    spatial query, and the feed-forward block are separate. The class branch has the parameters of Conditional DETR's
    decoder, the box branch those in `box_layers` and `box_query_scale`. With `split_attention` and `task_queries` off,
    this is Conditional DETR's decoder.

    Args:
        split_attention: one branch per task; otherwise one branch serves both.
        task_queries: branches start from salient points (see `TaskQueries`); otherwise from zero content at the
            reference point.
        num_points: salient points per query and task.
        exchange: input of self-attention. "mean": the mean of a query's branches; every branch gets the result.
            "concatenation": the queries of both branches, concatenated.
        options: options of `ConditionalDetrTransformerDecoder`.

    Raises:
        ValueError: `exchange` has another value, or `batch_first` is set.
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
            raise ValueError("batch_first=True: SD-DETR's decoder takes the queries first; set batch_first=False")
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
            query, query_pos: content and learned embeddings of the queries.
            key, value, key_pos: the tokens and their position embeddings.
            mask: (B, H, W) bool, true in padding; S = H · W.
            key_padding_mask: (B, S) bool, true for masked tokens.

        Returns:
            States (L, B, N, 2, D) of the layers, class branch first, or (L, B, N, D) with a single branch; and the
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
        """Yield for each branch the modules of layer `index` and the scaling of its spatial query."""
        yield class_parts(self.layers[index]), self.query_scale
        if self.num_branches == 2:
            yield self.box_layers[index], self.box_query_scale

    def _exchange(self, attention: nn.Module, branches: Tensor, query_pos: Tensor) -> Tensor:
        """Apply shared self-attention to the branches (T, N, B, D)."""
        if self.exchange == "mean" or self.num_branches == 1:
            shared = branches.mean(0)
            return branches + attention(shared, identity=torch.zeros_like(shared), query_pos=query_pos)
        side_by_side = attention(branches.flatten(0, 1), query_pos=query_pos.repeat(self.num_branches, 1, 1))
        return side_by_side.unflatten(0, branches.shape[:2])


def class_parts(layer: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that follow self-attention in a layer of Conditional DETR."""
    return {
        "cross_attn": layer.attentions[1],
        "cross_norm": layer.norms[1],
        "ffn": layer.ffns[0],
        "ffn_norm": layer.norms[2],
    }


def attend(parts: dict[str, nn.Module] | nn.ModuleDict, query: Tensor, **attention) -> Tensor:
    """Apply cross-attention and feed-forward block of a branch to (N, B, D), each followed by a norm."""
    query = parts["cross_norm"](parts["cross_attn"](query, **attention))
    return parts["ffn_norm"](parts["ffn"](query))
