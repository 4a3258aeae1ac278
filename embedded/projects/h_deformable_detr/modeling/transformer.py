"""H-Deformable-DETR's transformer: two-stage Deformable DETR with mixed query selection."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detrex.layers import get_sine_pos_embed
from projects.detr_common import (
    DeformableDecoder,
    DeformableEncoder,
    DeformableTransformer,
    flatten_pyramid,
    gather_tokens,
    top_tokens,
)
from torch import Tensor, nn


class HDeformableDetrTransformerEncoder(DeformableEncoder):
    """`DeformableEncoder` without activation checkpointing."""

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
    ):
        super().__init__(
            embed_dim,
            num_heads,
            feedforward_dim,
            attn_dropout,
            ffn_dropout,
            num_layers,
            post_norm,
            num_feature_levels,
        )


class HDeformableDetrTransformerDecoder(DeformableDecoder):
    """Decoder in which a query keeps the position embedding of its proposal in all layers."""

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
        *,
        inverse_sigmoid_eps: float = 1e-3,
    ):
        super().__init__(
            embed_dim,
            num_heads,
            feedforward_dim,
            attn_dropout,
            ffn_dropout,
            num_layers,
            return_intermediate,
            num_feature_levels,
            look_forward_twice,
            inverse_sigmoid_eps=inverse_sigmoid_eps,
        )

    def query_position(self, boxes: Tensor, padded_boxes: Tensor, query_pos: Tensor) -> Tensor:
        return query_pos


class HDeformableDetrTransformerOutput(NamedTuple):
    """Output for N queries and S tokens; boxes are cxcywh in [0, 1] of the image.

    Attributes:
        states: (L, B, N, E), of every decoder layer.
        starts: (L, B, N, 4), the boxes that the layers' box heads refine.
        proposal_logits, proposal_boxes: (B, S, C) and (B, S, 4), of all of the encoder's tokens.
    """

    states: Tensor
    starts: Tensor
    proposal_logits: Tensor
    proposal_boxes: Tensor


class HDeformableDetrTransformer(DeformableTransformer):
    """Encoder, query selection, decoder.

    The detector assigns the decoder's heads `class_embed` and `bbox_embed`; the last of each applies to encoder tokens,
    where class 0 means "object".

    Args:
        as_two_stage: must be true; the engine has no single-stage variant.
        two_stage_num_proposals: default number of queries: all queries of training.
        mixed_selection: boxes and positions of the queries come from the encoder, the content is learned. Otherwise
            the content comes from the proposals' boxes too.

    Raises:
        ValueError: `as_two_stage` is false.
    """

    def __init__(
        self,
        encoder=None,
        decoder=None,
        num_feature_levels: int = 4,
        as_two_stage: bool = False,
        two_stage_num_proposals: int = 300,
        mixed_selection: bool = True,
    ):
        super().__init__(encoder, decoder, num_feature_levels)
        if not as_two_stage:
            raise ValueError("HDeformableDetrTransformer needs as_two_stage=True; there is no single-stage variant")
        self.as_two_stage = as_two_stage
        self.two_stage_num_proposals = two_stage_num_proposals
        self.mixed_selection = mixed_selection
        dim = self.embed_dim
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.pos_trans = nn.Linear(2 * dim, 2 * dim)
        self.pos_trans_norm = nn.LayerNorm(2 * dim)
        self.init_weights()

    def get_proposal_pos_embed(self, proposals: Tensor, num_pos_feats: int = 128, temperature: int = 10000) -> Tensor:
        """Sinusoids (B, N, 4·num_pos_feats) of proposals (B, N, 4), cxcywh as logits."""
        return get_sine_pos_embed(proposals.sigmoid(), num_pos_feats, temperature, exchange_xy=False)

    def forward(
        self,
        multi_level_feats: Sequence[Tensor],
        multi_level_masks: Sequence[Tensor],
        multi_level_pos_embeds: Sequence[Tensor],
        query_embed: Tensor | None,
        self_attn_mask: Tensor | None,
        num_queries: int | None = None,
        **kwargs,
    ) -> HDeformableDetrTransformerOutput:
        """Decode a batch.

        Args:
            multi_level_feats, multi_level_pos_embeds: (B, E, H_l, W_l) for each level.
            multi_level_masks: (B, H_l, W_l) bool, true in padding.
            query_embed: (N, E) content; only used with mixed selection.
            self_attn_mask: (N, N) bool, true where attention is not allowed; or None.
            num_queries: N, by default `two_stage_num_proposals`.
        """
        pyramid = flatten_pyramid(multi_level_feats, multi_level_masks, multi_level_pos_embeds, self.level_embeds)
        memory = self.encode(pyramid)
        tokens, proposals = self.gen_encoder_output_proposals(memory, pyramid.padding, pyramid.shapes)
        logits = self.decoder.class_embed[-1](tokens)
        refined = self.decoder.bbox_embed[-1](tokens) + proposals

        scores = logits[..., 0]
        if not self.training:
            scores = scores.masked_fill(pyramid.padding, -torch.inf)
        chosen = top_tokens(scores, self.two_stage_num_proposals if num_queries is None else num_queries)
        selected = gather_tokens(refined.detach(), chosen)
        embedding = self.get_proposal_pos_embed(selected, num_pos_feats=self.embed_dim // 2)
        query_pos, content = self.pos_trans_norm(self.pos_trans(embedding)).chunk(2, dim=-1)
        if self.mixed_selection:
            content = query_embed.expand(memory.shape[0], -1, -1)
        states, starts = self.decode(pyramid, memory, content, selected.sigmoid(), self_attn_mask, query_pos)
        return HDeformableDetrTransformerOutput(states, starts, logits, refined.sigmoid())
