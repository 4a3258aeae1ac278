"""Transformer layers made of attentions, feed-forward blocks and norms."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

_OPERATIONS = ("self_attn", "cross_attn", "norm", "ffn")


class BaseTransformerLayer(nn.Module):
    """Attentions, feed-forward blocks and norms in a given order.

    Args:
        attn: one attention for each `self_attn` and `cross_attn`, in the order of `operation_order`. A single module
            is copied for all of them.
        ffn: copied for each `ffn`.
        norm: copied for each `norm`.
        operation_order: names among `"self_attn"`, `"cross_attn"`, `"norm"` and `"ffn"`. If `"norm"` comes first, the
            layer is pre-norm: residual connections skip the norms.
    """

    def __init__(
        self,
        attn: nn.Module | Sequence[nn.Module],
        ffn: nn.Module,
        norm: nn.Module,
        operation_order: Sequence[str],
    ):
        super().__init__()
        unknown = set(operation_order) - set(_OPERATIONS)
        if unknown:
            raise ValueError(f"operation_order holds {sorted(unknown)}; the operations are {_OPERATIONS}")
        num_attn = sum(name.endswith("_attn") for name in operation_order)
        if isinstance(attn, nn.Module):
            attn = [copy.deepcopy(attn) for _ in range(num_attn)]
        if len(attn) != num_attn:
            raise ValueError(f"operation_order has {num_attn} attentions, but attn holds {len(attn)}")
        self.operation_order = tuple(operation_order)
        self.pre_norm = self.operation_order[0] == "norm"
        self.num_attn = num_attn
        self.attentions = nn.ModuleList(attn)
        self.embed_dim = self.attentions[0].embed_dim
        self.ffns = nn.ModuleList(copy.deepcopy(ffn) for _ in range(self.operation_order.count("ffn")))
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(self.operation_order.count("norm")))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_masks: Tensor | Sequence[Tensor | None] | None = None,
        query_key_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Update `query`; for shapes and masks see the attentions.

        Args:
            query, query_pos: the queries and their position embeddings.
            key, value, key_pos: keys, values and position embeddings of cross-attention.
            attn_masks: one for each attention, or one for all of them.
            query_key_padding_mask, key_padding_mask: padding of the queries and of the keys, (batch, length).
            **kwargs: passed on to every attention.
        """
        if attn_masks is None or isinstance(attn_masks, Tensor):
            attn_masks = [attn_masks] * self.num_attn
        if len(attn_masks) != self.num_attn:
            raise ValueError(f"the layer has {self.num_attn} attentions, but attn_masks holds {len(attn_masks)}")
        attentions, ffns, norms = zip(self.attentions, attn_masks, strict=True), iter(self.ffns), iter(self.norms)
        residual = query
        for operation in self.operation_order:
            identity = residual if self.pre_norm else query
            if operation == "norm":
                query = next(norms)(query)
                continue
            if operation == "ffn":
                query = next(ffns)(query, identity)
            else:
                attention, mask = next(attentions)
                to_queries = operation == "self_attn"
                query = attention(
                    query,
                    query if to_queries else key,
                    query if to_queries else value,
                    identity,
                    query_pos=query_pos,
                    key_pos=query_pos if to_queries else key_pos,
                    attn_mask=mask,
                    key_padding_mask=query_key_padding_mask if to_queries else key_padding_mask,
                    **kwargs,
                )
            residual = query
        return query


class TransformerLayerSequence(nn.Module):
    """Stack of layers; subclasses define `forward`.

    Args:
        transformer_layers: a layer to copy `num_layers` times, or the list of layers.
        num_layers: number of layers.
    """

    def __init__(
        self,
        transformer_layers: nn.Module | Sequence[nn.Module] | None = None,
        num_layers: int | None = None,
    ):
        super().__init__()
        if isinstance(transformer_layers, nn.Module):
            transformer_layers = [copy.deepcopy(transformer_layers) for _ in range(num_layers)]
        elif transformer_layers is None or (num_layers is not None and len(transformer_layers) != num_layers):
            raise ValueError(f"transformer_layers must be one layer to copy or a list of num_layers={num_layers}")
        self.num_layers = len(transformer_layers)
        self.layers = nn.ModuleList(transformer_layers)

    def forward(self):
        raise NotImplementedError(f"{type(self).__name__} must implement forward()")
