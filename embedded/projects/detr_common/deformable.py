"""Encoder, decoder and transformer on multi-scale deformable attention (Deformable DETR, arXiv 2010.04159)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detrex.layers import (
    FFN,
    BaseTransformerLayer,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    TransformerLayerSequence,
)
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .pyramid import Shapes, TokenPyramid, encoder_proposals, reference_points


def _feed_forward(embed_dim: int, feedforward_dim: int, dropout: float) -> FFN:
    return FFN(embed_dim, feedforward_dim, output_dim=embed_dim, num_fcs=2, ffn_drop=dropout)


def deformable_encoder_layer(
    embed_dim: int,
    num_heads: int,
    feedforward_dim: int,
    attn_dropout: float,
    ffn_dropout: float,
    num_feature_levels: int,
) -> BaseTransformerLayer:
    """Build a layer of deformable self-attention and a feed-forward block, each followed by a norm; batch first."""
    return BaseTransformerLayer(
        attn=MultiScaleDeformableAttention(
            embed_dim, num_heads, num_levels=num_feature_levels, dropout=attn_dropout, batch_first=True
        ),
        ffn=_feed_forward(embed_dim, feedforward_dim, ffn_dropout),
        norm=nn.LayerNorm(embed_dim),
        operation_order=("self_attn", "norm", "ffn", "norm"),
    )


def deformable_decoder_layer(
    embed_dim: int,
    num_heads: int,
    feedforward_dim: int,
    attn_dropout: float,
    ffn_dropout: float,
    num_feature_levels: int,
) -> BaseTransformerLayer:
    """Build a decoder layer, batch first.

    Self-attention, deformable cross-attention to the encoder's tokens, feed-forward block; each followed by a norm.
    """
    among_queries = MultiheadAttention(embed_dim, num_heads, attn_drop=attn_dropout, batch_first=True)
    to_tokens = MultiScaleDeformableAttention(
        embed_dim, num_heads, num_levels=num_feature_levels, dropout=attn_dropout, batch_first=True
    )
    return BaseTransformerLayer(
        attn=[among_queries, to_tokens],
        ffn=_feed_forward(embed_dim, feedforward_dim, ffn_dropout),
        norm=nn.LayerNorm(embed_dim),
        operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    )


class _DeformableStack(TransformerLayerSequence):
    """Stack of layers with optional activation checkpointing.

    Args:
        layer: copied `num_layers` times.
        use_checkpoint: keep only the inputs of the layers, and recompute their activations in the backward pass.
    """

    def __init__(self, layer: BaseTransformerLayer, num_layers: int, use_checkpoint: bool):
        super().__init__(transformer_layers=layer, num_layers=num_layers)
        self.embed_dim = layer.embed_dim
        self.use_checkpoint = use_checkpoint

    def run_layer(self, layer: nn.Module, *args, **kwargs) -> Tensor:
        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False, **kwargs)
        return layer(*args, **kwargs)


class DeformableEncoder(_DeformableStack):
    """Stack of `deformable_encoder_layer`, with a final norm if `post_norm`."""

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        attn_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        num_layers: int = 6,
        post_norm: bool = False,
        num_feature_levels: int = 4,
        use_checkpoint: bool = False,
    ):
        layer = deformable_encoder_layer(
            embed_dim, num_heads, feedforward_dim, attn_dropout, ffn_dropout, num_feature_levels
        )
        super().__init__(layer, num_layers, use_checkpoint)
        self.post_norm_layer = nn.LayerNorm(embed_dim) if post_norm else None

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_masks: Sequence[Tensor] | None = None,
        query_key_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Encode the tokens (B, S, D).

        Args:
            query, query_pos: (B, S, D).
            query_key_padding_mask: (B, S) bool, true in padding.
            kwargs: `reference_points` (B, S, L, 2) and `TokenPyramid.attention_inputs`.
            key, value, key_pos, attn_masks, key_padding_mask: passed on, but unused by self-attention.
        """
        for layer in self.layers:
            query = self.run_layer(
                layer,
                query,
                key,
                value,
                query_pos=query_pos,
                key_pos=key_pos,
                attn_masks=attn_masks,
                query_key_padding_mask=query_key_padding_mask,
                key_padding_mask=key_padding_mask,
                **kwargs,
            )
        return query if self.post_norm_layer is None else self.post_norm_layer(query)


class DecoderStates(NamedTuple):
    """Output of L decoder layers (without `return_intermediate` only the last one, L = 1).

    Attributes:
        states: (L, B, N, D).
        starts: (L, B, N, 4), cxcywh in image coordinates: the boxes that the layers' box heads refine.
    """

    states: Tensor
    starts: Tensor


class DeformableDecoder(_DeformableStack):
    """Stack of `deformable_decoder_layer`; each layer attends around the boxes that the previous layer refined.

    The detector assigns its heads `class_embed` and `bbox_embed`; each layer has a box head. Subclasses compute the
    position embedding of a query from its box in `query_position`.

    Args:
        look_forward_twice: the boxes that a head refines pass gradients to the previous layer (DINO, arXiv 2203.03605,
            section 3.6). Attention uses detached boxes in any case.
        inverse_sigmoid_eps: see `detrex.utils.inverse_sigmoid`. detrex always uses 1e-3; weights of some other code
            bases were trained with 1e-5.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        attn_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        num_layers: int = 6,
        return_intermediate: bool = True,
        num_feature_levels: int = 4,
        look_forward_twice: bool = True,
        use_checkpoint: bool = False,
        *,
        inverse_sigmoid_eps: float = 1e-3,
    ):
        layer = deformable_decoder_layer(
            embed_dim, num_heads, feedforward_dim, attn_dropout, ffn_dropout, num_feature_levels
        )
        super().__init__(layer, num_layers, use_checkpoint)
        self.return_intermediate = return_intermediate
        self.look_forward_twice = look_forward_twice
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.class_embed: nn.ModuleList | None = None
        self.bbox_embed: nn.ModuleList | None = None

    def query_position(self, boxes: Tensor, padded_boxes: Tensor, query_pos: Tensor | None) -> Tensor:
        """Return the position embeddings (B, N, D) of the queries.

        Args:
            boxes: (B, N, 4), cxcywh in image coordinates.
            padded_boxes: (B, N, L, 4), the same boxes on each level in padded coordinates.
        """
        raise NotImplementedError

    def output_state(self, query: Tensor) -> Tensor:
        """Return the input of the heads for a layer's output."""
        return query

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_masks: Sequence[Tensor | None] | None = None,
        query_key_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        valid_ratios: Tensor | None = None,
        **kwargs,
    ) -> DecoderStates:
        """Decode N queries.

        Args:
            query, query_pos: (B, N, D).
            value: (B, S, D), the encoder's tokens; `key_padding_mask` (B, S) is true in padding.
            attn_masks: the mask (N, N) of self-attention: bool, true where attention is not allowed, or float, added to
                the scores; and None for cross-attention.
            reference_points: (B, N, 4), the first boxes, cxcywh in image coordinates.
            valid_ratios: (B, L, 2).
            kwargs: `TokenPyramid.attention_inputs`.
        """
        to_padded = valid_ratios.repeat(1, 1, 2)[:, None]
        boxes = start = reference_points
        states, starts = [], []
        for index, layer in enumerate(self.layers):
            padded_boxes = boxes[:, :, None] * to_padded
            query = self.run_layer(
                layer,
                query,
                key,
                value,
                query_pos=self.query_position(boxes, padded_boxes, query_pos),
                key_pos=key_pos,
                attn_masks=attn_masks,
                query_key_padding_mask=query_key_padding_mask,
                key_padding_mask=key_padding_mask,
                reference_points=padded_boxes,
                **kwargs,
            )
            states.append(self.output_state(query))
            starts.append(start)
            if index + 1 < self.num_layers:
                logits = inverse_sigmoid(boxes, self.inverse_sigmoid_eps)
                refined = (self.bbox_embed[index](query) + logits).sigmoid()
                boxes = refined.detach()
                start = refined if self.look_forward_twice else boxes
        kept = slice(None) if self.return_intermediate else slice(-1, None)
        return DecoderStates(torch.stack(states[kept]), torch.stack(starts[kept]))


class DeformableTransformer(nn.Module):
    """Encoder, decoder and level embeddings; subclasses select the queries."""

    def __init__(self, encoder: DeformableEncoder, decoder: DeformableDecoder, num_feature_levels: int):
        super().__init__()
        self.embed_dim = encoder.embed_dim
        self.num_feature_levels = num_feature_levels
        self.level_embeds = nn.Parameter(torch.empty(num_feature_levels, self.embed_dim))
        self.encoder = encoder
        self.decoder = decoder

    def init_weights(self) -> None:
        """Initialise matrices (Xavier), embeddings (unit normal), and deformable attentions (their `init_weights`)."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        nn.init.normal_(self.level_embeds)

    @staticmethod
    def get_reference_points(spatial_shapes: Shapes, valid_ratios: Tensor, device: torch.device) -> Tensor:
        """See `detr_common.reference_points`."""
        return reference_points(spatial_shapes, valid_ratios.to(device))

    def gen_encoder_output_proposals(
        self, memory: Tensor, memory_padding_mask: Tensor, spatial_shapes: Shapes
    ) -> tuple[Tensor, Tensor]:
        """Return projected tokens (B, S, D) for the heads, and the logits of their proposals (B, S, 4).

        Tokens without a usable proposal are set to zero before the projection, see `encoder_proposals`.
        """
        proposals, usable = encoder_proposals(memory_padding_mask, spatial_shapes)
        return self.enc_output_norm(self.enc_output(memory * usable)), proposals

    def encode(self, pyramid: TokenPyramid) -> Tensor:
        """Run the encoder; return tokens (B, S, D)."""
        return self.encoder(
            query=pyramid.features,
            key=None,
            value=None,
            query_pos=pyramid.positions,
            query_key_padding_mask=pyramid.padding,
            reference_points=self.get_reference_points(pyramid.shapes, pyramid.valid_ratios, pyramid.features.device),
            **pyramid.attention_inputs,
        )

    def decode(
        self,
        pyramid: TokenPyramid,
        memory: Tensor,
        query: Tensor,
        boxes: Tensor,
        self_attn_mask: Tensor | None,
        query_pos: Tensor | None = None,
    ) -> DecoderStates:
        """Run the decoder on the encoder's tokens `memory` (B, S, D); see `DeformableDecoder.forward`."""
        if self_attn_mask is not None:  # convert once: else each layer converts it, and keeps a copy for backward
            allowed = torch.zeros_like(self_attn_mask, dtype=memory.dtype)
            self_attn_mask = allowed.masked_fill_(self_attn_mask, -torch.inf)
        return self.decoder(
            query=query,
            key=None,
            value=memory,
            query_pos=query_pos,
            attn_masks=[self_attn_mask, None],
            key_padding_mask=pyramid.padding,
            reference_points=boxes,
            valid_ratios=pyramid.valid_ratios,
            **pyramid.attention_inputs,
        )
