"""DINO's transformer: two-stage query selection and a decoder of dynamic anchor boxes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detrex.layers import MLP, get_sine_pos_embed
from projects.detr_common import (
    DeformableDecoder,
    DeformableEncoder,
    DeformableTransformer,
    flatten_pyramid,
    gather_tokens,
    top_tokens,
)
from torch import Tensor, nn


class DINOTransformerEncoder(DeformableEncoder):
    """`DeformableEncoder` under the name that configs use."""


class DINOTransformerDecoder(DeformableDecoder):
    """Decoder with position embeddings from the current boxes, and a norm before the heads."""

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
        use_checkpoint: bool = True,
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
            use_checkpoint,
            inverse_sigmoid_eps=inverse_sigmoid_eps,
        )
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        self.norm = nn.LayerNorm(embed_dim)

    def query_position(self, boxes: Tensor, padded_boxes: Tensor, query_pos: Tensor | None) -> Tensor:
        # The published models train with boxes in padded coordinates of the finest level. At inference detections
        # must not depend on padding. Without padding both are equal.
        position = padded_boxes[:, :, 0] if self.training else boxes
        return self.ref_point_head(get_sine_pos_embed(position, num_pos_feats=self.embed_dim // 2))

    def output_state(self, query: Tensor) -> Tensor:
        return self.norm(query)


class DINOTransformerOutput(NamedTuple):
    """Output for D denoising and N matching queries; boxes are cxcywh in [0, 1] of the image.

    Attributes:
        states: (L, B, D + N, E), of every decoder layer.
        starts: (L, B, D + N, 4), the boxes that the layers' box heads refine.
        proposal_states: (B, N, E), the selected encoder tokens.
        proposal_boxes: (B, N, 4), their boxes.
    """

    states: Tensor
    starts: Tensor
    proposal_states: Tensor
    proposal_boxes: Tensor


class DINOTransformer(DeformableTransformer):
    """Encoder, query selection, decoder.

    The detector assigns the decoder's heads `class_embed` and `bbox_embed`; the last of each applies to encoder tokens.

    Args:
        two_stage_num_proposals: N, the number of queries: the tokens with the highest scores.
        learnt_init_query: mixed query selection (DINO, section 3.4): the boxes of the queries come from the encoder,
            the content is learned. Otherwise both come from the encoder.
    """

    def __init__(
        self,
        encoder=None,
        decoder=None,
        num_feature_levels: int = 4,
        two_stage_num_proposals: int = 900,
        learnt_init_query: bool = True,
    ):
        super().__init__(encoder, decoder, num_feature_levels)
        self.two_stage_num_proposals = two_stage_num_proposals
        self.learnt_init_query = learnt_init_query
        if learnt_init_query:
            self.tgt_embed = nn.Embedding(two_stage_num_proposals, self.embed_dim)
        self.enc_output = nn.Linear(self.embed_dim, self.embed_dim)
        self.enc_output_norm = nn.LayerNorm(self.embed_dim)
        self.init_weights()

    def select_queries(self, tokens: Tensor, proposals: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Select the tokens with the highest class scores: return states (B, N, E) and boxes (B, N, 4)."""
        with torch.no_grad():
            scores = self.decoder.class_embed[-1](tokens).amax(-1)
            if not self.training:
                scores = scores.masked_fill(padding, -torch.inf)
            chosen = top_tokens(scores, self.two_stage_num_proposals)
        states = gather_tokens(tokens, chosen)
        boxes = (self.decoder.bbox_embed[-1](states) + gather_tokens(proposals, chosen)).sigmoid()
        return states, boxes

    def forward(
        self,
        multi_level_feats: Sequence[Tensor],
        multi_level_masks: Sequence[Tensor],
        multi_level_pos_embeds: Sequence[Tensor],
        query_embed: tuple[Tensor | None, Tensor | None],
        attn_masks: Tensor | None,
        **kwargs,
    ) -> DINOTransformerOutput:
        """Decode a batch.

        Args:
            multi_level_feats, multi_level_pos_embeds: (B, E, H_l, W_l) for each level.
            multi_level_masks: (B, H_l, W_l) bool, true in padding.
            query_embed: denoising content (B, D, E) and boxes (B, D, 4) as logits, or two Nones.
            attn_masks: (D + N, D + N) bool, true where attention is not allowed; or None.
        """
        pyramid = flatten_pyramid(multi_level_feats, multi_level_masks, multi_level_pos_embeds, self.level_embeds)
        memory = self.encode(pyramid)
        tokens, proposals = self.gen_encoder_output_proposals(memory, pyramid.padding, pyramid.shapes)
        proposal_states, proposal_boxes = self.select_queries(tokens, proposals, pyramid.padding)

        boxes = proposal_boxes.detach()
        if self.learnt_init_query:
            content = self.tgt_embed.weight.expand(memory.shape[0], -1, -1)
        else:
            content = proposal_states.detach()
        denoising_content, denoising_boxes = query_embed
        if denoising_content is not None:
            content = torch.cat([denoising_content, content], dim=1)
            boxes = torch.cat([denoising_boxes.sigmoid(), boxes], dim=1)

        states, starts = self.decode(pyramid, memory, content, boxes, attn_masks)
        return DINOTransformerOutput(states, starts, proposal_states, proposal_boxes)
