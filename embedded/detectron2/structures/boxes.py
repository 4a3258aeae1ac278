"""Axis-aligned boxes in pixels."""

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["BoxMode", "Boxes", "pairwise_iou"]

BoxLike = TypeVar("BoxLike", list, tuple, np.ndarray, Tensor)


@unique
class BoxMode(IntEnum):
    """Format of a box: two corners (XYXY) or corner and size (XYWH), in pixels (ABS) or in [0, 1] (REL)."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3

    @staticmethod
    def convert(box: BoxLike, from_mode: "BoxMode", to_mode: "BoxMode") -> BoxLike:
        """Convert boxes to another mode; return a new object of the same type.

        Args:
            box: one box as a list or tuple of 4 numbers, or an array or tensor of shape (..., 4).

        Raises:
            ValueError: not 4 numbers; or a conversion between pixels and [0, 1], which needs the image's size.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if isinstance(box, (list, tuple)):
            if len(box) != 4:
                raise ValueError(f"a box has 4 numbers, not {len(box)}")
            return type(box)(BoxMode.convert(np.asarray(box, dtype=float), from_mode, to_mode).tolist())
        if box.shape[-1] != 4:
            raise ValueError(f"boxes have 4 numbers each, not {box.shape[-1]}")
        absolute = {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}
        if (from_mode in absolute) != (to_mode in absolute):
            raise ValueError(f"{from_mode.name} to {to_mode.name} needs the size of the image: scale the boxes instead")

        converted = box.clone() if isinstance(box, Tensor) else box.copy()
        corners = {BoxMode.XYXY_ABS, BoxMode.XYXY_REL}
        if from_mode in corners and to_mode not in corners:
            converted[..., 2:] -= box[..., :2]
        elif from_mode not in corners and to_mode in corners:
            converted[..., 2:] += box[..., :2]
        return converted


class Boxes:
    """N boxes, (x0, y0, x1, y1) in pixels, on any device.

    Args:
        tensor: (N, 4), or data for such a tensor; stored as float32, because half precision is too low for pixel
            coordinates.
    """

    def __init__(self, tensor: Tensor | np.ndarray | Sequence):
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise ValueError(f"boxes have shape (N, 4), not {tuple(tensor.shape)}")
        self.tensor = tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def clone(self) -> "Boxes":
        return Boxes(self.tensor.clone())

    def to(self, *args, **kwargs) -> "Boxes":
        """Return the boxes on another device; for the arguments see `Tensor.to`."""
        return Boxes(self.tensor.to(*args, **kwargs))

    def pin_memory(self) -> "Boxes":
        """Return the boxes in page-locked memory; the DataLoader calls it for GPUs."""
        return Boxes(self.tensor.pin_memory())

    def area(self) -> Tensor:
        """Return the areas (N,) in square pixels; negative for a box with swapped corners on one axis."""
        return (self.tensor[:, 2:] - self.tensor[:, :2]).prod(dim=1)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clip the boxes to an image of size (height, width), in place."""
        height, width = box_size
        limits = self.tensor.new_tensor([width, height, width, height])
        self.tensor = self.tensor.clamp(min=0).minimum(limits)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Return (N,) bool: whether each box is wider and higher than `threshold` pixels."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: "list[Boxes]") -> "Boxes":
        return cls(torch.cat([boxes.tensor for boxes in boxes_list])) if boxes_list else cls([])

    def __getitem__(self, item: int | slice | Tensor) -> "Boxes":
        """Select boxes by a position, a slice, a bool mask (N,) or positions (M,); always return Boxes."""
        return Boxes(self.tensor[item].reshape(-1, 4))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over the boxes as tensors of shape (4,)."""
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Return the IoU (N, M) of every box of `boxes1` with every box of `boxes2`; 0 for two empty boxes."""
    first, second = boxes1.tensor[:, None], boxes2.tensor[None]
    overlap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    intersection = overlap.clamp(min=0).prod(dim=-1)
    union = boxes1.area()[:, None] + boxes2.area()[None] - intersection
    return torch.where(intersection > 0, intersection / union, 0)
