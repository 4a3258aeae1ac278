"""Prediction heads: initial values, and the predictions of every decoder layer."""

import math
from collections.abc import Sequence

import torch
from detrex.layers import MLP
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn


def class_head(embed_dim: int, num_classes: int, prior: float = 0.01) -> nn.Linear:
    """Linear classifier whose sigmoid starts at `prior`, so that the many negatives do not drown the first steps
    (Focal Loss, arXiv 1708.02002, section 4.1)."""
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, math.log(prior / (1 - prior)))
    return head


def box_head(embed_dim: int, output_dim: int = 4) -> MLP:
    """Three-layer box regressor that starts at zero: the first predictions are the reference boxes."""
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
    """Logits (L, B, N, C) and boxes (L, B, N, 4) from L decoder states (B, N, D) and the boxes (B, N, 4), cxcywh in
    [0, 1], that the layers started from. Heads beyond L are not used."""
    logits = [head(state) for head, state in zip(class_embed, states, strict=False)]
    boxes = [
        (head(state) + inverse_sigmoid(start, inverse_sigmoid_eps)).sigmoid()
        for head, state, start in zip(bbox_embed, states, starts, strict=False)
    ]
    return torch.stack(logits), torch.stack(boxes)


def prediction_dict(logits: Tensor, boxes: Tensor, aux: bool = True, suffix: str = "") -> dict:
    """The last layer of logits (L, B, N, C) and boxes (L, B, N, 4) as `pred_logits` and `pred_boxes`, the earlier
    ones in the list `aux_outputs`; `suffix` ends the outer keys."""
    outputs = {f"pred_logits{suffix}": logits[-1], f"pred_boxes{suffix}": boxes[-1]}
    if aux:
        outputs[f"aux_outputs{suffix}"] = [
            {"pred_logits": z, "pred_boxes": b} for z, b in zip(logits[:-1], boxes[:-1], strict=True)
        ]
    return outputs
