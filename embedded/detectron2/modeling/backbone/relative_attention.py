"""Attention over a map of cells, whose scores have a summand for the rows and one for the columns.

The score of query cell i for key cell j is scale · q_i·k_j + bias_h[i, row of j] + bias_w[i, column of j]. A matrix of
these summands would be as large as that of the scores, and is never stored:

* On the CPU, scores are made, used and thrown away a block at a time; backward makes them again.
* Elsewhere they become a part of the dot product: bias_h and bias_w are more channels of the query, and a key has ones
  at the channels of its own row and column. So `scaled_dot_product_attention` may take a kernel that keeps no scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SCORES = 1 << 19
"""Scores in a block for each thread, at most: few enough for the cache, many enough to hide what calls cost."""

_is_compiling = getattr(torch.compiler, "is_compiling", bool)  # not in PyTorch 2.1


def relative_attention(query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """Softmax attention with decomposed relative positions (MViTv2, arXiv 2112.01526, equation 5).

    Args:
        query, key, value: (B, heads, H·W, D), cells row by row. Scores are scaled by 1 / √D.
        bias_h: (B, heads, H·W, H), added to a query's scores of all keys in a row.
        bias_w: (B, heads, H·W, W), added to a query's scores of all keys in a column.

    Returns:
        (B, heads, H·W, D).
    """
    if torch.jit.is_tracing():  # a graph for other runtimes, which choose their kernels themselves
        biases = (bias_h[..., None] + bias_w[..., None, :]).flatten(-2)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=biases)
    if query.device.type == "cpu" and not _is_compiling():
        flat = [x.flatten(0, 1) for x in (query, key, value, bias_h, bias_w)]
        return _BlockwiseAttention.apply(*flat).view_as(value)
    return fused_attention(query, key, value, bias_h, bias_w)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """`relative_attention` as one call of `scaled_dot_product_attention`, on D + H + W channels."""
    channels, height, width = query.shape[-1], bias_h.shape[-1], bias_w.shape[-1]
    scale = channels**-0.5
    rows = torch.eye(height, dtype=key.dtype, device=key.device)[:, None].expand(-1, width, -1)
    columns = torch.eye(width, dtype=key.dtype, device=key.device)[None].expand(height, -1, -1)
    own = torch.cat([rows, columns], dim=-1).flatten(0, 1).expand(*key.shape[:3], -1)
    more = height + width
    more = more + -(channels + more) % 8  # what the kernels align rows to
    query = torch.cat([query, bias_h / scale, bias_w / scale], dim=-1)
    key = torch.cat([key, own], dim=-1)
    padding = more - height - width
    attended = F.scaled_dot_product_attention(
        F.pad(query, (0, padding)), F.pad(key, (0, padding)), F.pad(value, (0, more)), scale=scale
    )
    return attended[..., :channels]


class _BlockwiseAttention(torch.autograd.Function):
    """`relative_attention` on (G, H·W, …) tensors, G = B · heads."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value, bias_h, bias_w)
        output = torch.empty_like(value, memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for block in _blocks(query):
                output[block] = _probabilities(block, query, key, bias_h, bias_w) @ value[block[0]]
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, ...]:
        query, key, value, bias_h, bias_w = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        grad_query, grad_bias_h, grad_bias_w = (torch.empty_like(x) for x in (query, bias_h, bias_w))
        # Sums over the blocks of queries, so bfloat16 would lose digits.
        precise = torch.promote_types(key.dtype, torch.float32)
        grad_key, grad_value = (torch.zeros_like(x, dtype=precise) for x in (key, value))
        for block in _blocks(query):
            group = block[0]
            probabilities = _probabilities(block, query, key, bias_h, bias_w)
            grad = grad_output[block]
            grad_value[group] += probabilities.transpose(1, 2) @ grad
            grad_scores = grad @ value[group].transpose(1, 2)
            # Of the softmax: p · (g - Σ p·g)
            grad_scores -= torch.linalg.vecdot(probabilities, grad_scores)[..., None]
            grad_scores *= probabilities
            grad_query[block] = (grad_scores @ key[group]).mul_(scale)
            grad_key[group] += (grad_scores.transpose(1, 2) @ query[block]).mul_(scale)
            cells = grad_scores.unflatten(2, (bias_h.shape[-1], bias_w.shape[-1]))
            grad_bias_h[block] = cells.sum(3)
            grad_bias_w[block] = cells.sum(2)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), grad_bias_h, grad_bias_w


def _blocks(query: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of (G, N, …) tensors by the budget of scores: several of G, or some of the N queries of one."""
    groups, tokens = query.shape[:2]
    budget = BLOCK_SCORES * torch.get_num_threads()
    group_size, query_size = max(budget // tokens**2, 1), max(budget // tokens, 1)
    for group in range(0, groups, group_size):
        for start in range(0, tokens, query_size):
            yield slice(group, group + group_size), slice(start, start + query_size)


def _probabilities(block: tuple[slice, slice], query: Tensor, key: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """(g, n, H·W) softmax of the scores of a block's queries."""
    scores = (bias_h[block][..., None] + bias_w[block][..., None, :]).flatten(2)
    scores.baddbmm_(query[block], key[block[0]].transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1, out=scores)
