"""Encoder, decoder and transformer with dense attention to one feature map (DAB-DETR, Conditional DETR)."""

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
        batch_first: tensors are (B, S, D) instead of (S, B, D).
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
        """Return the position embedding that a layer adds to queries and keys; subclasses scale it by the content."""
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
        """Encode the tokens (S, B, D).

        Args:
            query, query_pos: the tokens and their position embeddings.
            query_key_padding_mask: (B, S) bool, true in padding.
            key, value, key_pos, key_padding_mask: unused, for a common signature.
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
    """Decoder with separate content and position terms in cross-attention (Conditional DETR).

    Subclasses define the positions of the queries in `forward`, and add `post_norm_layer`: a norm of every output of
    the stack, or None. The norm does not apply to the input of the next layer.

    Args:
        embed_dim, num_heads, num_layers: of the attentions; `embed_dim` is even.
        attn_dropout, ffn_dropout: dropout of the attention weights and in the feed-forward blocks.
        feedforward_dim: width of the feed-forward blocks.
        activation: their activation; every layer gets its own copy.
        batch_first: tensors are (B, N, D) instead of (N, B, D).
        return_intermediate: return the outputs of all layers instead of the last one.
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
            raise ValueError(f"embed_dim={embed_dim} must be even: half of the channels embed y, the other half x")
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
            # Only the first layer adds positions to the content, which is zero there. State dicts have no other keys.
            later.attentions[1].query_pos_proj = None
        self.embed_dim = embed_dim
        self.batch_first = batch_first
        self.return_intermediate = return_intermediate
        self.query_scale = MLP(embed_dim, embed_dim, embed_dim, 2)

    def spatial_query(self, point_embed: Tensor, query: Tensor, index: int) -> Tensor:
        """Return the spatial queries (…, D) of layer `index` (Conditional DETR, eq. 6).

        They are the embedding of the query's point, scaled by its content. The first layer has no content: no scaling.
        """
        return point_embed if index == 0 else point_embed * self.query_scale(query)

    def outputs(self, layers: Sequence[Tensor]) -> Tensor:
        """Stack the outputs of the layers: (L, …), or (1, …) without `return_intermediate`."""
        return torch.stack(layers if self.return_intermediate else layers[-1:])

    def state(self, query: Tensor) -> Tensor:
        """Return the input of the heads for a layer's queries."""
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
        """Initialise all matrices (Xavier)."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def decode(
        self, x: Tensor, mask: Tensor, pos_embed: Tensor, content: Tensor, **queries: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run encoder and decoder on a feature map.

        Args:
            x, pos_embed: (B, D, H, W).
            mask: (B, H, W) bool, true in padding.
            content: (N, D), content of the queries, the same for every image.
            queries: (N, …), further arguments of the decoder by name.
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
            # The published detectors do not mask padding in training. At inference it is masked, so that detections
            # do not depend on the other images of the batch.
            key_padding_mask=None if self.training else padding,
            **{name: self._in_layout(value.expand(x.shape[0], -1, -1)) for name, value in queries.items()},
        )

    def _in_layout(self, x: Tensor) -> Tensor:
        """Convert (B, length, …) to the layout of encoder and decoder."""
        return x if self.encoder.batch_first else x.transpose(0, 1)
