"""Learned anchor boxes of the queries."""

from typing import Any

import torch
from torch import Tensor, nn


class AnchorBoxes(nn.Module):
    """N learned boxes; `weight` (N, 4) has their logits, cxcywh in [0, 1].

    Args:
        num_boxes: N.
        freeze_centers: sample the centres uniformly over the image and keep them; only width and height are learned.
            As in the published model, state dicts and optimizers have one tensor for centres and sizes. The frozen
            centres are also a buffer: weight decay may change the first two columns of the parameter, and `forward`
            restores them.
    """

    def __init__(self, num_boxes: int, freeze_centers: bool):
        super().__init__()
        self.freeze_centers = freeze_centers
        self.weight = nn.Parameter(torch.randn(num_boxes, 4))
        if freeze_centers:
            self.weight.data[:, :2] = torch.rand(num_boxes, 2).logit(eps=1e-3)
            self.register_buffer("centers", self.weight.detach()[:, :2].clone(), persistent=False)

    def forward(self) -> Tensor:
        """Return `weight` (N, 4), without gradient for frozen centres."""
        if not self.freeze_centers:
            return self.weight
        if self.training:
            with torch.no_grad():  # averages of the parameter (EMA) then have the frozen centres too
                self.weight[:, :2] = self.centers
        return torch.cat((self.centers, self.weight[:, 2:]), dim=1)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.freeze_centers and not keep_vars:  # with keep_vars the caller needs the parameter itself, as in tracing
            weight = destination[f"{prefix}weight"]
            destination[f"{prefix}weight"] = torch.cat((self.centers, weight[:, 2:]), dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.freeze_centers and f"{prefix}weight" in state_dict:
            self.centers = self.weight.detach()[:, :2].clone()
