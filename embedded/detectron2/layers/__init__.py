"""Layers of the backbones."""

from .batch_norm import FrozenBatchNorm2d, get_norm
from .blocks import CNNBlockBase
from .shape_spec import ShapeSpec
from .wrappers import Conv2d, cat, nonzero_tuple

__all__ = ["CNNBlockBase", "Conv2d", "FrozenBatchNorm2d", "ShapeSpec", "cat", "get_norm", "nonzero_tuple"]
