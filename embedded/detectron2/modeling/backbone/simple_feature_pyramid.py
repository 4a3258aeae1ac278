"""The feature pyramid over a plain backbone (ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn

from .backbone import Backbone

__all__ = ["SimpleFeaturePyramid"]

Norm = Callable[[int], nn.Module]


class SimpleFeaturePyramid(Backbone):
    """Levels of several strides, each straight from the one map of a plain backbone (ViTDet, arXiv 2203.16527).

    Args:
        net: the backbone.
        in_feature: name of its feature map.
        out_channels: channels of each level.
        scale_factors: size of each level as a multiple of the map's, from fine to coarse: 4.0, 2.0, 1.0 or 0.5.
        top_block: makes further levels, such as `LastLevelMaxPool`.
        norm: of the convolutions, as in `get_norm`.
        square_pad: side in pixels of the square that batches are to be padded to; 0 for none. It is told in
            `padding_constraints`, which detrex's detectors do not read: they pad to the largest image of the batch.

    Raises:
        ValueError: a scale that is none of these, or whose stride is not twice the one before it.
    """

    def __init__(
        self,
        net: Backbone,
        in_feature: str,
        out_channels: int,
        scale_factors: Sequence[float],
        top_block: nn.Module | None = None,
        norm: str | Norm | None = "LN",
        square_pad: int = 0,
    ):
        super().__init__()
        shapes = net.output_shape()
        if in_feature not in shapes:
            raise ValueError(f"SimpleFeaturePyramid: in_feature={in_feature!r} is not of the net's {', '.join(shapes)}")
        source = shapes[in_feature]
        strides = [int(source.stride / scale) for scale in scale_factors]
        if any(fine * 2 != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
            raise ValueError(
                f"SimpleFeaturePyramid: each scale of {list(scale_factors)} must be half of the one before"
            )
        levels = [int(log2(stride)) for stride in strides]
        for level, scale in zip(levels, scale_factors, strict=True):
            self.add_module(f"simfp_{level}", _pyramid_level(source.channels, out_channels, float(scale), norm))
        self.net = net
        self.in_feature = in_feature
        self.top_block = top_block
        self._levels = [f"p{level}" for level in levels]
        self._output_shape = dict(
            zip(self._levels, (ShapeSpec(channels=out_channels, stride=stride) for stride in strides), strict=True)
        )
        for level in range(levels[-1] + 1, levels[-1] + 1 + (top_block.num_levels if top_block is not None else 0)):
            self._output_shape[f"p{level}"] = ShapeSpec(channels=out_channels, stride=2**level)
        self._square_pad = square_pad

    @property
    def padding_constraints(self) -> dict[str, int]:
        """For `ImageList.from_tensors`: the coarsest stride of `scale_factors`, and `square_pad`."""
        return {
            "size_divisibility": self._output_shape[self._levels[-1]].stride,
            "square_size": self._square_pad,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to levels "p{i}" (B, out_channels, H / 2^i, W / 2^i) by name, fine to coarse."""
        features = self.net(x)
        source = features[self.in_feature]
        outputs = {name: getattr(self, f"simfp_{name[1:]}")(source) for name in self._levels}
        if self.top_block is not None:
            top = {**outputs, **features}[self.top_block.in_feature]
            more = [name for name in self._output_shape if name not in outputs]
            outputs.update(zip(more, self.top_block(top), strict=True))
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return dict(self._output_shape)


def _pyramid_level(dim: int, out_channels: int, scale: float, norm: str | Norm | None) -> nn.Sequential:
    """From the backbone's map of `dim` channels to a level of `scale` times its size."""
    if scale == 4.0:
        resize = [
            nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2),
            get_norm(norm, dim // 2) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, kernel_size=2, stride=2),
        ]
        dim = dim // 4
    elif scale == 2.0:
        resize = [nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)]
        dim = dim // 2
    elif scale == 1.0:
        resize = []
    elif scale == 0.5:
        resize = [nn.MaxPool2d(kernel_size=2, stride=2)]
    else:
        raise ValueError(f"SimpleFeaturePyramid: a scale is {scale}; choose from 4.0, 2.0, 1.0 and 0.5")
    bias = norm == ""
    return nn.Sequential(
        *resize,
        Conv2d(dim, out_channels, kernel_size=1, bias=bias, norm=get_norm(norm, out_channels)),
        Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=bias, norm=get_norm(norm, out_channels)),
    )
