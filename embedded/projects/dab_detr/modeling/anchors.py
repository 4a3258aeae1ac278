"""The learned boxes that queries start from."""

from typing import Any

import torch
from torch import Tensor, nn


class AnchorBoxes(nn.Module):
    """`weight` (N, 4): the logits of N boxes, cxcywh in [0, 1].

    Args:
        num_boxes: N.
        freeze_centers: spread the centres uniformly over the image and keep them there; only width and height are
            learned. State dicts and optimizers have one tensor for both, as those of the published model. The centres
            in use are a buffer beside it, which neither gradients nor weight decay reach; what these make of the first
            two columns of the parameter is overwritten.
    """

    def __init__(self, num_boxes: int, freeze_centers: bool):
        super().__init__()
        self.freeze_centers = freeze_centers
        self.weight = nn.Parameter(torch.randn(num_boxes, 4))
        if freeze_centers:
            self.weight.data[:, :2] = torch.rand(num_boxes, 2).logit(eps=1e-3)
            self.register_buffer("centers", self.weight.detach()[:, :2].clone(), persistent=False)

    def forward(self) -> Tensor:
        """(N, 4), `weight` with the gradient that it is to have."""
        if not self.freeze_centers:
            return self.weight
        if self.training:
            with torch.no_grad():  # for those who average the parameter
                self.weight[:, :2] = self.centers
        return torch.cat((self.centers, self.weight[:, 2:]), dim=1)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.freeze_centers and not keep_vars:  # who keeps them wants the parameter itself, as tracing does
            weight = destination[f"{prefix}weight"]
            destination[f"{prefix}weight"] = torch.cat((self.centers, weight[:, 2:]), dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.freeze_centers and f"{prefix}weight" in state_dict:
            self.centers = self.weight.detach()[:, :2].clone()
