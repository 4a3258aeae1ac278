"""Attention of transformer layers: standard attention, and Conditional DETR's with separate content and position.

All modules add a residual connection, and take (length, batch, width) tensors, or (batch, length, width) with
`batch_first`. A boolean mask is true where attention is not allowed; a float mask is added to the scores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` with position embeddings added to query and key, dropout and a residual connection.

    Args:
        embed_dim: width of queries, keys and values.
        num_heads: number of heads, a divisor of `embed_dim`.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
        batch_first: tensors are (batch, length, width) instead of (length, batch, width).
        **kwargs: further arguments of `nn.MultiheadAttention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        batch_first: bool = False,
        **kwargs,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.batch_first = batch_first
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, dropout=attn_drop, batch_first=batch_first, **kwargs)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Attend from `query` to `key` (default: `query`).

        Args:
            query, key, value: `value` defaults to `key` without its position.
            identity: residual to which the output is added; by default `query` without its position.
            query_pos, key_pos: added to query and key. `key_pos` defaults to `query_pos` if the shapes agree.
            attn_mask: (queries, keys) or (batch · heads, queries, keys).
            key_padding_mask: (batch, keys).

        Returns:
            A tensor in the shape of `query`.
        """
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        if key_pos is None and query_pos is not None and query_pos.shape == key.shape:
            key_pos = query_pos
        query = query if query_pos is None else query + query_pos
        key = key if key_pos is None else key + key_pos
        query, key, value = (_length_first_in_memory(x, self.batch_first) for x in (query, key, value))
        attended, _ = self.attn(
            query, key, value, attn_mask=attn_mask, key_padding_mask=key_padding_mask, need_weights=False
        )
        return identity + self.proj_drop(attended)


def _length_first_in_memory(x: Tensor, batch_first: bool) -> Tensor:
    """Return the tensor with contiguous memory in the order (length, batch, width), which `nn.MultiheadAttention` uses.

    With another layout, bfloat16 inference on a CPU copies the weights once for each position.
    """
    return x.transpose(0, 1).contiguous().transpose(0, 1) if batch_first else x.contiguous()


def _additive_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Combine both masks to one float mask for the scores (batch, heads, queries, keys), or None.

    Args:
        attn_mask, key_padding_mask: see `MultiheadAttention`.
        like: queries (batch, heads, queries, width), for shape, dtype and device.
    """
    batch, heads = like.shape[:2]

    def additive(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(like.dtype)
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -torch.inf)

    masks = []
    if attn_mask is not None:
        masks.append(additive(attn_mask.unflatten(0, (batch, heads)) if attn_mask.dim() == 3 else attn_mask))
    if key_padding_mask is not None:
        masks.append(additive(key_padding_mask)[:, None, None])
    return sum(masks[1:], start=masks[0]) if masks else None


class _ConditionalAttention(nn.Module):
    """Base class of the two attentions below: options, attention, and output projection."""

    def __init__(self, embed_dim: int, num_heads: int, attn_drop: float, proj_drop: float, batch_first: bool):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"attention: embed_dim={embed_dim} must be a multiple of num_heads={num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.batch_first = batch_first
        self.proj_drop = nn.Dropout(proj_drop)

    def _heads(self, x: Tensor) -> Tensor:
        """Split (length, batch, width), or batch first, into heads: (batch, heads, length, width / heads)."""
        x = x if self.batch_first else x.transpose(0, 1)
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor:
        """Attend with tensors (batch, heads, length, …); return the projected output in the layout of the inputs."""
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_additive_mask(attn_mask, key_padding_mask, q),
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        out = out.transpose(1, 2).flatten(-2)
        return self.proj_drop(self.out_proj(out if self.batch_first else out.transpose(0, 1)))


class ConditionalSelfAttention(_ConditionalAttention):
    """Self-attention with separate projections of content and position (Conditional DETR, ICCV 2021).

    For the arguments see `MultiheadAttention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        batch_first: bool = False,
        **kwargs,
    ):
        super().__init__(embed_dim, num_heads, attn_drop, proj_drop, batch_first)
        for name in ("query_content", "query_pos", "key_content", "key_pos", "value", "out"):
            self.add_module(f"{name}_proj", nn.Linear(embed_dim, embed_dim))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """See `MultiheadAttention.forward`; `query_pos` is required, and `key_pos` defaults to it."""
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        key_pos = query_pos if key_pos is None else key_pos
        q = self.query_content_proj(query) + self.query_pos_proj(query_pos)
        k = self.key_content_proj(key) + self.key_pos_proj(key_pos)
        v = self.value_proj(value)
        return identity + self._attend(self._heads(q), self._heads(k), self._heads(v), attn_mask, key_padding_mask)


class ConditionalCrossAttention(_ConditionalAttention):
    """Cross-attention whose scores are a content term plus a spatial term (Conditional DETR, ICCV 2021, eq. 4).

    Each head concatenates content and position instead of adding them: then positions are compared only with positions.
    For the arguments see `MultiheadAttention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        batch_first: bool = False,
        **kwargs,
    ):
        super().__init__(embed_dim, num_heads, attn_drop, proj_drop, batch_first)
        for name in ("query_content", "query_pos", "query_pos_sine", "key_content", "key_pos", "value", "out"):
            self.add_module(f"{name}_proj", nn.Linear(embed_dim, embed_dim))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        query_sine_embed: Tensor | None = None,
        is_first_layer: bool = False,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """See `MultiheadAttention.forward`; the position has two parts.

        Args:
            query_pos, key_pos: added to the content terms in the first decoder layer, whose queries have no content.
                `key_pos` is also the spatial term of the keys, in every layer.
            query_sine_embed: spatial term of the queries, in the shape of `query`.
            is_first_layer: whether to use `query_pos`. In later layers `query_pos_proj` may be None.
        """
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        q_content, k_content = self.query_content_proj(query), self.key_content_proj(key)
        k_position = self.key_pos_proj(key_pos)
        if is_first_layer:
            q_content = q_content + self.query_pos_proj(query_pos)
            k_content = k_content + k_position
        q_position = self.query_pos_sine_proj(query_sine_embed)
        q = torch.cat((self._heads(q_content), self._heads(q_position)), dim=-1)
        k = torch.cat((self._heads(k_content), self._heads(k_position)), dim=-1)
        v = self._heads(self.value_proj(value))
        return identity + self._attend(q, k, v, attn_mask, key_padding_mask)
