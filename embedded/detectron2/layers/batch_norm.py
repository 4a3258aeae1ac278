"""Normalisation layers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def _replace_modules(module: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace each submodule by the result of `replace`, if not None, in place; return the module."""
    replacement = replace(module)
    if replacement is not None:
        return replacement
    for name, child in module.named_children():
        setattr(module, name, _replace_modules(child, replace))
    return module


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with constant statistics and affine parameters, all of them buffers.

    Statistics of small batches are unreliable, so detectors keep those of the pretrained backbone. The initial layer is
    (nearly) the identity.
    """

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # `forward` adds eps: the initial variance is exactly 1.
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, num_features, H, W); shape and dtype stay."""
        if not x.requires_grad:
            # Twice as fast in forward, but slower in backward: it computes gradients of the constants too.
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the layer's scale and shift of each channel, (num_features,)."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm and SyncBatchNorm by a frozen one: in place, unless `module` itself is one."""

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

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """Replace every frozen batch norm by `nn.BatchNorm2d` with the same values."""

        def thaw(norm: nn.Module) -> nn.Module | None:
            if not isinstance(norm, cls):
                return None
            batch_norm = nn.BatchNorm2d(norm.num_features, norm.eps).to(norm.weight.device)
            batch_norm.load_state_dict(norm.state_dict(), strict=False)
            return batch_norm

        return _replace_modules(module, thaw)


class LayerNorm(nn.Module):
    """Layer norm over the channels of each cell of a feature map.

    It is not a subclass of `nn.LayerNorm`: `get_default_optimizer_params` recognises norms by their class, but the
    published recipes use the weight decay of convolutions for this layer.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, num_channels, H, W); the shape stays."""
        cells = x.permute(0, 2, 3, 1)
        return F.layer_norm(cells, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build a normalisation layer for `out_channels` channels.

    Args:
        norm: `"BN"`, `"SyncBN"`, `"FrozenBN"`, `"GN"` (32 groups) or `"LN"` (of the channels of each cell); a function
            of the number of channels; None or "" for no normalisation.

    Raises:
        ValueError: the name is unknown.
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
            raise ValueError(f"unknown normalisation layer {norm!r}; use one of {', '.join(by_name)}")
        norm = by_name[norm]
    return norm(out_channels)
