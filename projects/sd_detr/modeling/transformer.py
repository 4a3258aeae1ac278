"""Transformer of SD-DETR."""

from projects.conditional_detr.modeling import ConditionalDetrTransformer
from torch import Tensor, nn


class SDDetrTransformer(ConditionalDetrTransformer):
    """Conditional DETR's transformer; it passes the padding mask to the decoder.

    Args:
        encoder: Conditional DETR's.
        decoder: an `SDDetrTransformerDecoder`.
    """

    def __init__(self, encoder: nn.Module | None = None, decoder: nn.Module | None = None):
        super().__init__(encoder, decoder)
        if decoder.task_queries is not None:
            decoder.task_queries.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor, query_embed: Tensor, pos_embed: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the objects of a feature map.

        Args:
            x, pos_embed: (B, D, H, W).
            mask: (B, H, W) bool, true in padding.
            query_embed: (N, D).

        Returns:
            See `SDDetrTransformerDecoder.forward`.
        """
        tokens, positions = (map_.flatten(2).permute(2, 0, 1) for map_ in (x, pos_embed))
        padding = mask.flatten(1)
        memory = self.encoder(query=tokens, key=None, value=None, query_pos=positions, query_key_padding_mask=padding)
        query_pos = query_embed[:, None].expand(-1, len(x), -1)
        return self.decoder(
            query=query_pos.new_zeros(query_pos.shape),
            key=memory,
            value=memory,
            query_pos=query_pos,
            key_pos=positions,
            mask=mask,
            # As in Conditional DETR: padding is not masked in training.
            key_padding_mask=None if self.training else padding,
        )
