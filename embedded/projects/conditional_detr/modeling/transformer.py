"""Transformer of Conditional DETR: each query has a reference point."""

from detrex.layers import MLP, get_sine_pos_embed
from projects.detr_common import ConditionalDecoder, DenseEncoder, DenseTransformer, Masks
from torch import Tensor, nn


class ConditionalDetrTransformerEncoder(DenseEncoder):
    """`DenseEncoder` under the name that configs use."""


class ConditionalDetrTransformerDecoder(ConditionalDecoder):
    """Decoder that attends around each query's reference point, which is computed from the query's embedding.

    Args:
        post_norm: apply a norm to every output of the stack, but not to the input of the next layer.

    For the other arguments see `ConditionalDecoder`.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        attn_dropout: float = 0.0,
        feedforward_dim: int = 2048,
        ffn_dropout: float = 0.0,
        activation: nn.Module = nn.PReLU(),  # noqa: B008 (copied by FFN)
        num_layers: int | None = None,
        batch_first: bool = False,
        post_norm: bool = True,
        return_intermediate: bool = True,
    ):
        super().__init__(
            embed_dim,
            num_heads,
            attn_dropout,
            feedforward_dim,
            ffn_dropout,
            activation,
            num_layers,
            batch_first,
            return_intermediate,
        )
        self.ref_point_head = MLP(embed_dim, embed_dim, 2, 2)
        self.post_norm_layer = nn.LayerNorm(embed_dim) if post_norm else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_masks: Masks = None,
        query_key_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Refine the queries (N, B, D) against the tokens (S, B, D).

        Args:
            query, query_pos: content and learned embeddings of the queries.
            key, value, key_pos: the tokens and their position embeddings.
            key_padding_mask: (B, S) bool, true in padding.

        Returns:
            States (L, B, N, D) of the layers (without `return_intermediate` of the last one), and the reference points
            (B, N, 2), x and y in [0, 1]. Both are batch first, with and without `batch_first`.
        """
        points = self.ref_point_head(query_pos).sigmoid()
        embed = get_sine_pos_embed(points, self.embed_dim // 2)
        states = []
        for index, layer in enumerate(self.layers):
            query = layer(
                query,
                key,
                value,
                query_pos=query_pos,
                key_pos=key_pos,
                attn_masks=attn_masks,
                query_key_padding_mask=query_key_padding_mask,
                key_padding_mask=key_padding_mask,
                query_sine_embed=self.spatial_query(embed, query, index),
                is_first_layer=index == 0,
                **kwargs,
            )
            states.append(self.state(query))
        if self.batch_first:
            return self.outputs(states), points
        return self.outputs(states).transpose(1, 2), points.transpose(0, 1)


class ConditionalDetrTransformer(DenseTransformer):
    """Encoder and decoder on one feature map.

    Args:
        encoder, decoder: with the same `embed_dim` and `batch_first`.
    """

    def __init__(self, encoder: nn.Module | None = None, decoder: nn.Module | None = None):
        super().__init__(encoder, decoder)
        self.init_weights()

    def forward(self, x: Tensor, mask: Tensor, query_embed: Tensor, pos_embed: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the objects of a feature map.

        Args:
            x, pos_embed: (B, D, H, W).
            mask: (B, H, W) bool, true in padding.
            query_embed: (N, D).

        Returns:
            States (L, B, N, D) of the decoder layers and reference points (B, N, 2), x and y in [0, 1].
        """
        return self.decode(x, mask, pos_embed, query_embed.new_zeros(query_embed.shape), query_pos=query_embed)
