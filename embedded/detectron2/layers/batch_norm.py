"""Normalisation layers by name."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def _replace_modules(module: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """`module` with every submodule for which `replace` returns another one exchanged for it, in place."""
    replacement = replace(module)
    if replacement is not None:
        return replacement
    for name, child in module.named_children():
        setattr(module, name, _replace_modules(child, replace))
    return module


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with constant statistics and a constant affine map, all of them buffers.

    Small batches make batch statistics useless, so detectors keep those of the pretrained backbone. Before a
    checkpoint is loaded the layer is (nearly) the identity.
    """

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # With eps added in forward, exactly the identity.
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_features, H, W) to the same shape and dtype."""
        if not x.requires_grad:
            # Twice as fast forward; its backward, which asks for the gradients of constants too, is the slower one.
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Factor and summand of each channel, (num_features,): all that this layer does."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze every BatchNorm and SyncBatchNorm in `module`: in place, unless `module` itself is one."""

        def freeze(norm: nn.Module) -> nn.Module | None:
            if not isinstance(norm, _BatchNorm):
                return None
            frozen = cls(norm.num_features, norm.eps).to(norm.running_mean.device)
            if norm.affine:
                frozen.weight.copy_(norm.weight.detach())
                frozen.bias.copy_(norm.bias.detach())
            frozen.running_mean.copy_(norm.running_mean)
            frozen.running_var.copy_(norm.running_var)
            return frozen

        return _replace_modules(module, freeze)

class LayerNorm(nn.Module):
    """Layer norm of the channels of each cell of a feature map.

    Not a subclass of `nn.LayerNorm`: the published recipes apply weight decay to its parameters, and
    `get_default_optimizer_params` recognises norms by their class.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_channels, H, W) to the same shape."""
        cells = x.permute(0, 2, 3, 1)
        return F.layer_norm(cells, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """A normalisation layer for `out_channels` channels.

    Args:
        norm: `"BN"`, `"SyncBN"`, `"FrozenBN"`, `"GN"` (32 groups) or `"LN"` (of the channels of each cell); a function
            of the number of channels; None or "" for no normalisation.

    Raises:
        ValueError: another name.
    """
    if not norm:
        return None
    if isinstance(norm, str):
        by_name = {
            "BN": nn.BatchNorm2d,
            "SyncBN": nn.SyncBatchNorm,
            "FrozenBN": FrozenBatchNorm2d,
            "GN": lambda channels: nn.GroupNorm(32, channels),
            "LN": LayerNorm,
        }
        if norm not in by_name:
            raise ValueError(f"no normalisation layer is called {norm!r}; use one of {', '.join(by_name)}")
        norm = by_name[norm]
    return norm(out_channels)
