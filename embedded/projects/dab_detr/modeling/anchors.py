"""The learned boxes that queries start from."""

import weakref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

# The frozen ones among all anchor boxes alive, with their centres from before the running optimizer step.
_frozen: "weakref.WeakKeyDictionary[AnchorBoxes, Tensor | None]" = weakref.WeakKeyDictionary()


class AnchorBoxes(nn.Module):
    """`weight` (N, 4): the logits of N boxes, cxcywh in [0, 1].

    Args:
        num_boxes: N.
        freeze_centers: spread the centres uniformly over the image and keep them there; only width and height are
            learned. One parameter holds both, as in the published checkpoints. `requires_grad` cannot tell its
            columns apart, so `forward` cuts the centres off from the gradient; and since weight decay needs no
            gradient, the centres are put back after every step of an optimizer.
    """

    def __init__(self, num_boxes: int, freeze_centers: bool):
        super().__init__()
        self.freeze_centers = freeze_centers
        self.weight = nn.Parameter(torch.randn(num_boxes, 4))
        if freeze_centers:
            self.weight.data[:, :2] = torch.rand(num_boxes, 2).logit(eps=1e-3)
            _frozen[self] = None

    def __setstate__(self, state: dict) -> None:
        """Copies (`copy.deepcopy`, pickle) are as frozen as the original."""
        super().__setstate__(state)
        if self.freeze_centers:
            _frozen[self] = None

    def forward(self) -> Tensor:
        """(N, 4), `weight` with the gradient that it is to have."""
        if not self.freeze_centers:
            return self.weight
        return torch.cat((self.weight[:, :2].detach(), self.weight[:, 2:]), dim=1)


def _keep_centers(*_) -> None:
    for anchors in list(_frozen):
        _frozen[anchors] = anchors.weight[:, :2].detach().clone()


def _restore_centers(*_) -> None:
    for anchors, centers in _frozen.items():
        anchors.weight.detach()[:, :2].copy_(centers)


register_optimizer_step_pre_hook(_keep_centers)
register_optimizer_step_post_hook(_restore_centers)
