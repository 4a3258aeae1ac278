"""Encoder, decoder and transformer on dense attention to one feature map, as in DAB-DETR and Conditional DETR."""

from collections.abc import Sequence

import torch
from detrex.layers import (
    FFN,
    MLP,
    BaseTransformerLayer,
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    MultiheadAttention,
    TransformerLayerSequence,
)
from torch import Tensor, nn

Masks = Sequence[Tensor | None] | None


class DenseEncoder(TransformerLayerSequence):
    """Self-attention over the tokens of one feature map.

    Args:
        embed_dim, num_heads, num_layers: of the attentions.
        attn_dropout, ffn_dropout: dropout of the attention weights and in the feed-forward blocks.
        feedforward_dim: width of the feed-forward blocks.
        activation: their activation; every layer gets its own copy.
        post_norm: one more norm after the last layer.
        batch_first: tensors are (B, S, D), not (S, B, D).
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        attn_dropout: float = 0.1,
        feedforward_dim: int = 2048,
        ffn_dropout: float = 0.1,
        activation: nn.Module = nn.PReLU(),  # noqa: B008 (copied by FFN)
        post_norm: bool = False,
        num_layers: int = 6,
        batch_first: bool = False,
    ):
        layer = BaseTransformerLayer(
            attn=MultiheadAttention(embed_dim, num_heads, attn_drop=attn_dropout, batch_first=batch_first),
            ffn=FFN(embed_dim, feedforward_dim, activation=activation, ffn_drop=ffn_dropout),
            norm=nn.LayerNorm(embed_dim),
            operation_order=("self_attn", "norm", "ffn", "norm"),
        )
        super().__init__(layer, num_layers)
        self.embed_dim = embed_dim
        self.batch_first = batch_first
        self.post_norm_layer = nn.LayerNorm(embed_dim) if post_norm else None

    def position(self, query: Tensor, query_pos: Tensor) -> Tensor:
        """What a layer adds to its queries and keys; subclasses let it depend on the content `query`."""
        return query_pos

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_masks: Masks = None,
        query_key_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Tokens (S, B, D) to tokens (S, B, D).

        Args:
            query, query_pos: the tokens and the embedding of their position.
            query_key_padding_mask: (B, S) bool, true in padding.
            key, value, key_pos, key_padding_mask: part of every stack's signature; self-attention needs none.
        """
        for layer in self.layers:
            query = layer(
                query,
                query_pos=self.position(query, query_pos),
                attn_masks=attn_masks,
                query_key_padding_mask=query_key_padding_mask,
                **kwargs,
            )
        return query if self.post_norm_layer is None else self.post_norm_layer(query)


class ConditionalDecoder(TransformerLayerSequence):
    """Layers whose queries look for tokens by content and, apart from it, by position.

    Subclasses say in `forward` where queries are, and add `post_norm_layer`, a norm on every output of the stack, or
    None. What passes from layer to layer has none.

    Args:
        embed_dim, num_heads, num_layers: of the attentions; `embed_dim` is even.
        attn_dropout, ffn_dropout: dropout of the attention weights and in the feed-forward blocks.
        feedforward_dim: width of the feed-forward blocks.
        activation: their activation; every layer gets its own copy.
        batch_first: tensors are (B, N, D), not (N, B, D).
        return_intermediate: return the outputs of all layers, not of the last alone.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_dropout: float,
        feedforward_dim: int,
        ffn_dropout: float,
        activation: nn.Module,
        num_layers: int,
        batch_first: bool,
        return_intermediate: bool,
    ):
        if embed_dim % 2:
            raise ValueError(f"embed_dim={embed_dim} is odd: half of the channels embed y, the other half x")
        attention = {"attn_drop": attn_dropout, "batch_first": batch_first}
        layer = BaseTransformerLayer(
            attn=[
                ConditionalSelfAttention(embed_dim, num_heads, **attention),
                ConditionalCrossAttention(embed_dim, num_heads, **attention),
            ],
            ffn=FFN(embed_dim, feedforward_dim, activation=activation, ffn_drop=ffn_dropout),
            norm=nn.LayerNorm(embed_dim),
            operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
        )
        super().__init__(layer, num_layers)
        for later in self.layers[1:]:
            # Only the first layer adds positions to its content, which is still empty; state dicts have no others.
            later.attentions[1].query_pos_proj = None
        self.embed_dim = embed_dim
        self.batch_first = batch_first
        self.return_intermediate = return_intermediate
        self.query_scale = MLP(embed_dim, embed_dim, embed_dim, 2)

    def spatial_query(self, point_embed: Tensor, query: Tensor, index: int) -> Tensor:
        """What the queries of layer `index` look for by position (…, D): the embedding of their point, scaled by their
        content, which the first layer's queries do not have yet (Conditional DETR, eq. 6)."""
        return point_embed if index == 0 else point_embed * self.query_scale(query)

    def outputs(self, layers: Sequence[Tensor]) -> Tensor:
        """(L, …), or (1, …) without `return_intermediate`, of what the layers gave."""
        return torch.stack(layers if self.return_intermediate else layers[-1:])

    def state(self, query: Tensor) -> Tensor:
        """A layer's queries as the heads are to see them."""
        return query if self.post_norm_layer is None else self.post_norm_layer(query)


class DenseTransformer(nn.Module):
    """Encoder and decoder on one feature map.

    Args:
        encoder, decoder: with the same `embed_dim` and `batch_first`.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.embed_dim = encoder.embed_dim

    def init_weights(self) -> None:
        """Xavier for all matrices."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def decode(
        self, x: Tensor, mask: Tensor, pos_embed: Tensor, content: Tensor, **queries: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the decoder makes of a feature map.

        Args:
            x, pos_embed: (B, D, H, W).
            mask: (B, H, W) bool, true in padding.
            content: (N, D), of the queries of every image.
            queries: (N, …), what else the decoder is to know of them, by the name of its argument.
        """
        if pos_embed.shape[1] != self.embed_dim:
            raise ValueError(
                f"the position embedding has {pos_embed.shape[1]} channels, the transformer's embed_dim is "
                f"{self.embed_dim}: set position_embedding.num_pos_feats to half of embed_dim"
            )
        tokens, positions = (self._in_layout(map_.flatten(2).transpose(1, 2)) for map_ in (x, pos_embed))
        padding = mask.flatten(1)
        memory = self.encoder(query=tokens, key=None, value=None, query_pos=positions, query_key_padding_mask=padding)
        queries = {"query": content, **queries}
        return self.decoder(
            key=memory,
            value=memory,
            key_pos=positions,
            # The published detectors are trained with padding in view. At inference it must not matter, or an image's
            # detections would depend on the others in its batch.
            key_padding_mask=None if self.training else padding,
            **{name: self._in_layout(value.expand(x.shape[0], -1, -1)) for name, value in queries.items()},
        )

    def _in_layout(self, x: Tensor) -> Tensor:
        """(B, length, …) as encoder and decoder take it."""
        return x if self.encoder.batch_first else x.transpose(0, 1)
