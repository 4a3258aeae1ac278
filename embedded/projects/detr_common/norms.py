"""Normalisation layers, for configs."""

from functools import partial

from torch import nn


def layer_norm(eps: float = 1e-5) -> partial[nn.LayerNorm]:
    """Makes layer norms with this `eps`: for `norm_layer` of backbones."""
    return partial(nn.LayerNorm, eps=eps)
