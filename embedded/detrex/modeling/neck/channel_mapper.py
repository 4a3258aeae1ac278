"""Neck that projects backbone features to one width."""

import copy

from detrex.layers import ConvNormAct, ShapeSpec
from torch import Tensor, nn


class ChannelMapper(nn.Module):
    """One convolution for each backbone feature, and strided convolutions for coarser levels.

    Args:
        input_shapes: the backbone's features by name; only their `channels` are used.
        in_features: names of the features to map, fine to coarse.
        out_channels: width of all outputs.
        kernel_size, stride, bias, groups, dilation: options of the convolutions; kernel size and stride do not apply to
            the additional levels.
        norm_layer, activation: modules after each convolution; they are copied.
        num_outs: number of levels. Additional levels come from 3×3 convolutions of stride 2: the first from the last
            backbone feature, the others from the previous level.
    """

    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        in_features: list[str],
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = True,
        groups: int = 1,
        dilation: int = 1,
        norm_layer: nn.Module | None = None,
        activation: nn.Module | None = None,
        num_outs: int | None = None,
    ):
        super().__init__()
        widths = [input_shapes[name].channels for name in in_features]
        num_extra = 0 if num_outs is None else num_outs - len(widths)
        if num_extra < 0:
            raise ValueError(f"ChannelMapper: num_outs={num_outs} is less than in_features {list(in_features)}")

        def conv(in_channels: int, kernel_size: int, stride: int, padding: int) -> ConvNormAct:
            return ConvNormAct(
                in_channels,
                out_channels,
                kernel_size=kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                bias=bias,
                norm_layer=copy.deepcopy(norm_layer),
                activation=copy.deepcopy(activation),
            )

        self.in_features = list(in_features)
        padding = dilation * (kernel_size - 1) // 2
        self.convs = nn.ModuleList(conv(width, kernel_size, stride, padding) for width in widths)
        extra_widths = [widths[-1], *[out_channels] * (num_extra - 1)][:num_extra]
        self.extra_convs = nn.ModuleList(conv(width, 3, 2, 1) for width in extra_widths)

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Map a dict of maps (B, C_l, H_l, W_l) to `num_outs` maps (B, out_channels, H, W), fine to coarse."""
        outs = [conv(inputs[name]) for conv, name in zip(self.convs, self.in_features, strict=True)]
        source = inputs[self.in_features[-1]]
        for conv in self.extra_convs:
            source = conv(source)
            outs.append(source)
        return tuple(outs)
