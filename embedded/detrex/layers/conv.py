"""Convolution with norm and activation."""

from torch import Tensor, nn


class ConvNormAct(nn.Module):
    """`activation(norm(conv(x)))`.

    `norm_layer` and `activation` are modules, used without a copy, or None. For the other arguments see `nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        norm_layer: nn.Module | None = None,
        activation: nn.Module | None = None,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=bias
        )
        self.norm = norm_layer
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, in_channels, H, W) to (B, out_channels, H', W')."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)
