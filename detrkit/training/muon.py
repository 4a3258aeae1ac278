"""Muon, an optimizer that takes fewer steps than AdamW from randomly initialised weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of x → ax + bx³ + cx⁵. Five such iterations move singular values from (0.01, 1] to between 0.65 and 1.25."""
ITERATIONS = 5
UPDATE_SIZE = 0.2
"""Root mean square of an update of AdamW, divided by its rate (arXiv 2502.16982, section 2.2)."""


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Replace the singular values of matrices by values near 1, by Newton-Schulz iterations.

    Args:
        matrices: (count, rows, columns), on any device, of any floating dtype.

    Returns:
        Matrices of the same shape, device and dtype. A matrix of zeros stays zero.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # the products of rows are smaller then
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.AdamW):
    """Step matrices by their orthogonalized momentum, and all other parameters by AdamW.

    Matrices are the weights of linear layers and of convolutions (out, in × height × width). The last layers of heads,
    depthwise convolutions, biases, norms and embeddings of few rows have a side below `min_size` and take AdamW's step.

    Updates of matrices are scaled to the size of AdamW's, so both kinds use the same rate and weight decay. The best
    rate for AdamW is a good first guess. `torch.optim.Muon` takes linear layers only, and needs a second optimizer for
    all other parameters, which neither trainers nor checkpoints of detectron2 support.

    A step keeps one momentum buffer per matrix, where AdamW keeps two. It takes gradients of any dtype and device.

    Args:
        params: parameters or groups of them.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        momentum: decay of the average of a matrix's gradients.
        min_size: smallest side of a matrix.

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale is of
    J. Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982), equation 4.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
        min_size: int = 32,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must be at least 0 and below 1")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.defaults.update(momentum=momentum, min_size=min_size)
        for group in self.param_groups:
            group.setdefault("momentum", momentum)
            group.setdefault("min_size", min_size)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = {}
        updates = defaultdict(list)  # those of one shape are orthogonalized together
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and is_matrix(parameter, group["min_size"]):
                    gradients[parameter] = parameter.grad
                    update = self._momentum(parameter, group["momentum"]).flatten(1)
                    updates[update.shape, update.dtype, update.device].append((parameter, group, update))
        for (shape, _, _), items in updates.items():
            scale = UPDATE_SIZE * max(shape) ** 0.5
            orthogonal = orthogonalize(torch.stack([update for _, _, update in items]))
            for (parameter, group, _), update in zip(items, orthogonal, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)
        try:
            for parameter in gradients:
                parameter.grad = None  # AdamW skips it
            super().step()
        finally:
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
        return loss

    def _momentum(self, parameter: torch.Tensor, decay: float) -> torch.Tensor:
        """Add the gradient to the average of gradients; return Nesterov's average, which has the gradient twice."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            state["step"] = torch.tensor(0.0)  # AdamW looks for it when it loads a state
        state["step"] += 1
        average = state["momentum_buffer"].lerp_(parameter.grad, 1 - decay)
        return parameter.grad.lerp(average, decay)


def is_matrix(parameter: torch.Tensor, min_size: int) -> bool:
    """Whether `Muon` orthogonalizes the updates of a parameter."""
    return parameter.ndim > 1 and min(parameter.shape[0], parameter[0].numel()) >= min_size
