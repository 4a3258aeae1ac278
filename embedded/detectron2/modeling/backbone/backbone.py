"""The interface of backbones."""

from abc import ABC, abstractmethod

from detectron2.layers import ShapeSpec
from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Turn images into named feature maps.

    A subclass names its feature maps in one of two ways. It overrides `output_shape`, or it sets three attributes:
    `_out_features`, a list of names, and the dictionaries `_out_feature_channels` and `_out_feature_strides` by name.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to feature maps (B, C, H / stride, W / stride) by name."""

    @property
    def size_divisibility(self) -> int:
        """What height and width of the input must be multiples of; 0 if anything goes."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further demands on the padding of a batch, as `ImageList.from_tensors` takes them."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
