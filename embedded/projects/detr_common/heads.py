"""Prediction heads: initialisation, and predictions of all decoder layers."""

import math
from collections.abc import Sequence

import torch
from detrex.layers import MLP
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn


def class_head(embed_dim: int, num_classes: int, prior: float = 0.01) -> nn.Linear:
    """Build a linear classifier with initial score `prior` (Focal Loss, arXiv 1708.02002, section 4.1).

    Otherwise the many negatives would dominate the first steps.
    """
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, math.log(prior / (1 - prior)))
    return head


def box_head(embed_dim: int, output_dim: int = 4) -> MLP:
    """Build a three-layer box regressor with initial output zero: it predicts the reference boxes."""
    head = MLP(embed_dim, embed_dim, output_dim, 3)
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)
    return head


def predict_layers(
    states: Sequence[Tensor],
    starts: Sequence[Tensor],
    class_embed: nn.ModuleList,
    bbox_embed: nn.ModuleList,
    inverse_sigmoid_eps: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Predict logits (L, B, N, C) and boxes (L, B, N, 4) of L decoder layers.

    Args:
        states: outputs of the layers, (B, N, D) each.
        starts: boxes that the box heads refine, (B, N, 4) each, cxcywh in [0, 1].
        class_embed, bbox_embed: a head per layer; heads beyond L are unused.
    """
    logits = [head(state) for head, state in zip(class_embed, states, strict=False)]
    boxes = [
        (head(state) + inverse_sigmoid(start, inverse_sigmoid_eps)).sigmoid()
        for head, state, start in zip(bbox_embed, states, starts, strict=False)
    ]
    return torch.stack(logits), torch.stack(boxes)


def prediction_dict(logits: Tensor, boxes: Tensor, aux: bool = True, suffix: str = "") -> dict:
    """Return logits (L, B, N, C) and boxes (L, B, N, 4) as a dict with keys that end in `suffix`.

    The last layer is in `pred_logits` and `pred_boxes`, the earlier layers are in the list `aux_outputs`.
    """
    outputs = {f"pred_logits{suffix}": logits[-1], f"pred_boxes{suffix}": boxes[-1]}
    if aux:
        outputs[f"aux_outputs{suffix}"] = [
            {"pred_logits": z, "pred_boxes": b} for z, b in zip(logits[:-1], boxes[:-1], strict=True)
        ]
    return outputs
