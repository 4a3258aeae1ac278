"""Conversions and overlaps of axis-aligned boxes.

Boxes are float tensors (…, 4), either `xyxy` (two corners) or `cxcywh` (centre and size). All boxes of a call have the
same unit.
"""

import torch
from torch import Tensor

# Keeps quotients finite for boxes without area; much smaller than the area of a pixel, also for normalised boxes.
_EPS = 1e-6


def box_cxcywh_to_xyxy(bbox: Tensor) -> Tensor:
    """Convert boxes (…, 4) from centre and size to corners."""
    center, size = bbox.split(2, dim=-1)
    return torch.cat((center - size / 2, center + size / 2), dim=-1)


def box_xyxy_to_cxcywh(bbox: Tensor) -> Tensor:
    """Convert boxes (…, 4) from corners to centre and size."""
    low, high = bbox.split(2, dim=-1)
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def _area(size: Tensor) -> Tensor:
    """Return the area (…) of sizes (…, 2). `Tensor.prod` is not used: its gradient waits for the device."""
    return size[..., 0] * size[..., 1]


def elementwise_box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and union area of `xyxy` boxes; their leading dimensions broadcast."""
    overlap = torch.minimum(boxes1[..., 2:], boxes2[..., 2:]) - torch.maximum(boxes1[..., :2], boxes2[..., :2])
    intersection = _area(overlap.clamp(min=0))
    area1 = _area(boxes1[..., 2:] - boxes1[..., :2])
    area2 = _area(boxes2[..., 2:] - boxes2[..., :2])
    union = area1 + area2 - intersection
    return intersection / (union + _EPS), union


def elementwise_generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019, eq. 1) of broadcasting `xyxy` boxes, in [-1, 1]."""
    iou, union = elementwise_box_iou(boxes1, boxes2)
    hull = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2])
    hull_area = _area(hull.clamp(min=0))
    return iou - (hull_area - union) / (hull_area + _EPS)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union area of every box of `boxes1` (N, 4) with every box of `boxes2` (M, 4), `xyxy`: two (N, M)."""
    return elementwise_box_iou(boxes1[:, None], boxes2[None])


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of every box of `boxes1` (N, 4) with every box of `boxes2` (M, 4), `xyxy`: (N, M)."""
    return elementwise_generalized_box_iou(boxes1[:, None], boxes2[None])
