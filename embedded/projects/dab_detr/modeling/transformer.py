"""The transformer of DAB-DETR, whose queries are boxes that each decoder layer refines."""

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
    get_sine_pos_embed,
)
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn

Masks = Sequence[Tensor | None] | None


class DabDetrTransformerEncoder(TransformerLayerSequence):
    """Self-attention over the tokens of one feature map; each layer scales the position embedding by content.

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
        self.query_scale = MLP(embed_dim, embed_dim, embed_dim, 2)
        self.post_norm_layer = nn.LayerNorm(embed_dim) if post_norm else None

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
                query_pos=query_pos * self.query_scale(query),
                attn_masks=attn_masks,
                query_key_padding_mask=query_key_padding_mask,
                **kwargs,
            )
        return query if self.post_norm_layer is None else self.post_norm_layer(query)


class DabDetrTransformerDecoder(TransformerLayerSequence):
    """Layers that attend to the tokens around each query's box, then move and resize the box.

    The detector sets `bbox_embed`, the head that refines the boxes; without one, they stay as they are.

    Args:
        embed_dim, num_heads, num_layers: of the attentions; `embed_dim` is even.
        attn_dropout, ffn_dropout: dropout of the attention weights and in the feed-forward blocks.
        feedforward_dim: width of the feed-forward blocks.
        activation: their activation; every layer gets its own copy.
        modulate_hw_attn: scale the spatial attention by the boxes' width and height (section 4.4).
        batch_first: tensors are (B, N, D), not (N, B, D).
        post_norm: a norm on every output of the stack. What passes from layer to layer has none.
        return_intermediate: return the outputs of all layers, not of the last alone.
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
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        self.ref_anchor_head = MLP(embed_dim, embed_dim, 2, 2) if modulate_hw_attn else None
        self.post_norm_layer = nn.LayerNorm(embed_dim) if post_norm else None
        self.bbox_embed: nn.Module | None = None

    def _spatial_query(self, center_embed: Tensor, query: Tensor, boxes: Tensor, is_first_layer: bool) -> Tensor:
        """What a query looks for by position (…, D): the embedding of its centre (y, x), scaled by its content and
        by its size (section 4.4: attention stretches with the box)."""
        if not is_first_layer:
            center_embed = center_embed * self.query_scale(query)
        if self.ref_anchor_head is None:
            return center_embed
        stretch = self.ref_anchor_head(query).sigmoid() / boxes[..., 2:]
        by_x, by_y = stretch.split(1, dim=-1)
        rows, columns = center_embed.chunk(2, dim=-1)
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
            query: their content.
            key, value, key_pos: the tokens, and the embedding of their position.
            key_padding_mask: (B, S) bool, true in padding.
            anchor_box_embed: (N, B, 4), logits of the first boxes, cxcywh in [0, 1].
            query_pos: part of every stack's signature; the boxes say where queries are.

        Returns:
            For each layer, or for the last one alone, its states (L, N, B, D) and the boxes (L, N, B, 4) that it
            started from. The gradient of a layer's starting boxes reaches the layer before it.
        """
        boxes = start = anchor_box_embed.sigmoid()
        states, starts = [], []
        for index, layer in enumerate(self.layers):
            embed = get_sine_pos_embed(boxes, self.embed_dim // 2)
            query = layer(
                query,
                key,
                value,
                query_pos=self.ref_point_head(embed),
                key_pos=key_pos,
                attn_masks=attn_masks,
                query_key_padding_mask=query_key_padding_mask,
                key_padding_mask=key_padding_mask,
                query_sine_embed=self._spatial_query(embed[..., : self.embed_dim], query, boxes, index == 0),
                is_first_layer=index == 0,
                **kwargs,
            )
            states.append(query if self.post_norm_layer is None else self.post_norm_layer(query))
            starts.append(start)
            if self.bbox_embed is not None and index + 1 < self.num_layers:
                start = (self.bbox_embed(query) + inverse_sigmoid(boxes)).sigmoid()
                boxes = start.detach()
        kept = slice(None) if self.return_intermediate else slice(-1, None)
        return torch.stack(states[kept]), torch.stack(starts[kept])


class DabDetrTransformer(nn.Module):
    """Encoder and decoder on one feature map.

    Args:
        encoder, decoder: with the same `embed_dim` and `batch_first`.
        num_patterns: if positive, each anchor box becomes that many queries, with a learned content each, as in
            Anchor DETR (AAAI 2022); by default it becomes one, whose content starts at zero.
    """

    def __init__(self, encoder: nn.Module | None = None, decoder: nn.Module | None = None, num_patterns: int = 0):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.embed_dim = encoder.embed_dim
        self.num_patterns = num_patterns
        if num_patterns > 0:
            self.patterns = nn.Embedding(num_patterns, self.embed_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier for all matrices."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, mask: Tensor, anchor_box_embed: Tensor, pos_embed: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the objects of a feature map.

        Args:
            x: (B, D, H, W).
            mask: (B, H, W) bool, true in padding.
            anchor_box_embed: (N, 4), logits of the anchor boxes, cxcywh in [0, 1].
            pos_embed: (B, D, H, W).

        Returns:
            States (L, B, M, D) of the decoder layers and the boxes (L, B, M, 4), cxcywh in [0, 1], that they started
            from; M = N · max(1, num_patterns) queries, all anchors with the first pattern first.
        """
        if pos_embed.shape[1] != self.embed_dim:
            raise ValueError(
                f"the position embedding has {pos_embed.shape[1]} channels, the transformer's embed_dim is "
                f"{self.embed_dim}: set position_embedding.num_pos_feats to half of embed_dim"
            )
        batch = x.shape[0]
        tokens, positions = (self._in_layout(map_.flatten(2).transpose(1, 2)) for map_ in (x, pos_embed))
        padding = mask.flatten(1)
        memory = self.encoder(query=tokens, key=None, value=None, query_pos=positions, query_key_padding_mask=padding)

        content = x.new_zeros(len(anchor_box_embed), self.embed_dim)
        if self.num_patterns > 0:
            content = self.patterns.weight.repeat_interleave(len(anchor_box_embed), dim=0)
            anchor_box_embed = anchor_box_embed.repeat(self.num_patterns, 1)
        states, boxes = self.decoder(
            query=self._in_layout(content.expand(batch, -1, -1)),
            key=memory,
            value=memory,
            key_pos=positions,
            # The published detector is trained with padding in view. At inference it must not matter, or an image's
            # detections would depend on the others in its batch.
            key_padding_mask=None if self.training else padding,
            anchor_box_embed=self._in_layout(anchor_box_embed.expand(batch, -1, -1)),
        )
        return (states, boxes) if self.decoder.batch_first else (states.transpose(1, 2), boxes.transpose(1, 2))

    def _in_layout(self, x: Tensor) -> Tensor:
        """(B, length, …) as encoder and decoder take it."""
        return x if self.encoder.batch_first else x.transpose(0, 1)
