"""Transformer of DAB-DETR: queries are boxes that each decoder layer refines."""

import torch
from detrex.layers import MLP, get_sine_pos_embed
from detrex.utils import inverse_sigmoid
from projects.detr_common import ConditionalDecoder, DenseEncoder, DenseTransformer, Masks
from torch import Tensor, nn


class DabDetrTransformerEncoder(DenseEncoder):
    """`DenseEncoder` that scales the position embedding by the content."""

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
        super().__init__(
            embed_dim,
            num_heads,
            attn_dropout,
            feedforward_dim,
            ffn_dropout,
            activation,
            post_norm,
            num_layers,
            batch_first,
        )
        self.query_scale = MLP(embed_dim, embed_dim, embed_dim, 2)

    def position(self, query: Tensor, query_pos: Tensor) -> Tensor:
        return query_pos * self.query_scale(query)


class DabDetrTransformerDecoder(ConditionalDecoder):
    """Decoder whose layers attend around each query's box, then refine the box.

    The detector assigns `bbox_embed`, the head that refines the boxes; without it the boxes do not change.

    Args:
        modulate_hw_attn: scale the spatial attention by the boxes' width and height (section 4.4).
        inverse_sigmoid_eps: see `DeformableDecoder`.
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
        modulate_hw_attn: bool = True,
        batch_first: bool = False,
        post_norm: bool = True,
        return_intermediate: bool = True,
        *,
        inverse_sigmoid_eps: float = 1e-3,
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
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        self.ref_anchor_head = MLP(embed_dim, embed_dim, 2, 2) if modulate_hw_attn else None
        self.post_norm_layer = nn.LayerNorm(embed_dim) if post_norm else None
        self.bbox_embed: nn.Module | None = None
        self.inverse_sigmoid_eps = inverse_sigmoid_eps

    def _stretched(self, spatial_query: Tensor, query: Tensor, boxes: Tensor) -> Tensor:
        """Scale the spatial queries (…, D), embeddings of the centre (y, x), by the size of the boxes (section 4.4)."""
        if self.ref_anchor_head is None:
            return spatial_query
        stretch = self.ref_anchor_head(query).sigmoid() / boxes[..., 2:]
        by_x, by_y = stretch.split(1, dim=-1)
        rows, columns = spatial_query.chunk(2, dim=-1)
        return torch.cat((rows * by_y, columns * by_x), dim=-1)

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
        anchor_box_embed: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Refine the queries (N, B, D) against the tokens (S, B, D).

        Args:
            query: content of the queries.
            key, value, key_pos: the tokens and their position embeddings.
            key_padding_mask: (B, S) bool, true in padding.
            anchor_box_embed: (N, B, 4), logits of the first boxes, cxcywh in [0, 1].
            query_pos: unused, for a common signature.

        Returns:
            States (L, N, B, D) of the layers (without `return_intermediate` of the last one), and the boxes
            (L, N, B, 4) that their box heads refine. These boxes pass gradients to the previous layer.
        """
        boxes = start = anchor_box_embed.sigmoid()
        states, starts = [], []
        for index, layer in enumerate(self.layers):
            embed = get_sine_pos_embed(boxes, self.embed_dim // 2)
            spatial_query = self.spatial_query(embed[..., : self.embed_dim], query, index)
            query = layer(
                query,
                key,
                value,
                query_pos=self.ref_point_head(embed),
                key_pos=key_pos,
                attn_masks=attn_masks,
                query_key_padding_mask=query_key_padding_mask,
                key_padding_mask=key_padding_mask,
                query_sine_embed=self._stretched(spatial_query, query, boxes),
                is_first_layer=index == 0,
                **kwargs,
            )
            states.append(self.state(query))
            starts.append(start)
            if self.bbox_embed is not None and index + 1 < self.num_layers:
                start = (self.bbox_embed(query) + inverse_sigmoid(boxes, self.inverse_sigmoid_eps)).sigmoid()
                boxes = start.detach()
        return self.outputs(states), self.outputs(starts)


class DabDetrTransformer(DenseTransformer):
    """Encoder and decoder on one feature map.

    Args:
        encoder, decoder: with the same `embed_dim` and `batch_first`.
        num_patterns: queries per anchor box, each with a learned content, as in Anchor DETR (AAAI 2022). 0: one query
            per box, with content zero.
    """

    def __init__(self, encoder: nn.Module | None = None, decoder: nn.Module | None = None, num_patterns: int = 0):
        super().__init__(encoder, decoder)
        self.num_patterns = num_patterns
        if num_patterns > 0:
            self.patterns = nn.Embedding(num_patterns, self.embed_dim)
        self.init_weights()

    def forward(self, x: Tensor, mask: Tensor, anchor_box_embed: Tensor, pos_embed: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the objects of a feature map.

        Args:
            x: (B, D, H, W).
            mask: (B, H, W) bool, true in padding.
            anchor_box_embed: (N, 4), logits of the anchor boxes, cxcywh in [0, 1].
            pos_embed: (B, D, H, W).

        Returns:
            States (L, B, M, D) of the decoder layers and the boxes (L, B, M, 4), cxcywh in [0, 1], that their box heads
            refine. M = N · max(1, num_patterns); all anchors of the first pattern come first.
        """
        content = x.new_zeros(len(anchor_box_embed), self.embed_dim)
        if self.num_patterns > 0:
            content = self.patterns.weight.repeat_interleave(len(anchor_box_embed), dim=0)
            anchor_box_embed = anchor_box_embed.repeat(self.num_patterns, 1)
        states, boxes = self.decode(x, mask, pos_embed, content, anchor_box_embed=anchor_box_embed)
        return (states, boxes) if self.decoder.batch_first else (states.transpose(1, 2), boxes.transpose(1, 2))
