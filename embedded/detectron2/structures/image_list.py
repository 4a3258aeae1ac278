"""Images of different sizes as one padded tensor."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

__all__ = ["ImageList"]


class ImageList:
    """A batch of images, each in the top left corner of the padded tensor.

    Args:
        tensor: (B, H, W) or (B, C, H, W).
        image_sizes: (height, width) of each image before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Return a view of an image without padding, (H_i, W_i) or (C, H_i, W_i)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images at the right and bottom to a common size.

        Args:
            tensors: images of shape (..., H_i, W_i) with the same leading dimensions, dtype and device.
            size_divisibility: padded height and width are multiples of it; 0 or 1: any size.
            padding_constraints: a backbone's constraints: `size_divisibility` (overrides the argument) and
                `square_size` (> 0: pad to a square of this size, or larger if the images need it).
        """
        constraints = padding_constraints or {}
        size_divisibility = constraints.get("size_divisibility", size_divisibility)
        square = constraints.get("square_size", 0)

        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        canvas = [max(lengths) for lengths in zip(*sizes, strict=True)]
        if square > 0:
            canvas = [max(square, *canvas)] * 2
        if size_divisibility > 1:
            canvas = [ceil(length / size_divisibility) * size_divisibility for length in canvas]

        batch = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], *canvas), pad_value)
        for padded, image, (height, width) in zip(batch, tensors, sizes, strict=True):
            padded[..., :height, :width].copy_(image)
        return ImageList(batch.contiguous(), sizes)
