"""RoIAlign (Mask R-CNN, arXiv 1703.06870, section 3): pool the features of each box on a grid of bins."""

from collections.abc import Sequence

import torch
from detrex.layers import multi_scale_deform_attn
from torch import Tensor

from .torchvision import operators

# The embedded operator has kernels for CPU and CUDA. With a real detrex, use its PyTorch formula.
_read = getattr(
    multi_scale_deform_attn,
    "multi_scale_deformable_attn",
    multi_scale_deform_attn.multi_scale_deformable_attn_pytorch,
)


def roi_align(features: Tensor, boxes: Tensor, image: Tensor, size: int, scale: float, samples: int = 0) -> Tensor:
    """Pool each box to `size` x `size` bins: the mean of bilinear samples in each bin, float32.

    Cell (x, y) of the map has its centre at ((x + 0.5) / scale, (y + 0.5) / scale). Samples more than a cell outside
    the map are zero; nearer ones take the value at its edge.

    Args:
        features: (B, C, H, W).
        boxes: (R, 4), without gradient. With `samples` = 0, boxes without area give zeros.
        image: (R,) int64, the image of each box.
        scale: cells per pixel.
        samples: per bin and direction; 0: one per cell, rounded up.

    Returns:
        (R, C, size, size).
    """
    features, boxes = features.float(), boxes.detach().float()
    torchvision = operators(features.device)
    if torchvision is None:
        return read_bins(features, boxes, image, size, scale, samples)
    rois = torch.cat([image[:, None].to(boxes), boxes], dim=1)
    return torchvision.roi_align(features, rois, size, scale, samples, aligned=True)


def read_bins(features: Tensor, boxes: Tensor, image: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Run `roi_align` with the operator of deformable attention.

    A bin is a query that attends to its samples with equal weights. The number of samples depends on the box: boxes
    whose numbers round up to the same powers of two form a batch.
    """
    corner, opposite = (boxes * scale - 0.5).split(2, dim=-1)
    extent = opposite - corner
    if samples:
        number = kinds = torch.full_like(extent, samples, dtype=torch.int64)
    else:
        number = (extent / size).ceil().clamp(min=0).long()
        kinds = 2 ** number.clamp(min=1).log2().ceil().long()
    output = features.new_zeros(len(boxes), size * size, features.shape[1])
    for columns, rows in kinds.unique(dim=0).tolist():
        chosen = (kinds[:, 0] == columns) & (kinds[:, 1] == rows)
        x, x_weight = _axis(corner[chosen, 0], extent[chosen, 0], number[chosen, 0], columns, size, features.shape[3])
        y, y_weight = _axis(corner[chosen, 1], extent[chosen, 1], number[chosen, 1], rows, size, features.shape[2])
        output[chosen] = _read_points(features, image[chosen], x, y, x_weight, y_weight)
    return output.transpose(1, 2).unflatten(2, (size, size))


def _axis(start: Tensor, extent: Tensor, number: Tensor, most: int, size: int, cells: int) -> tuple[Tensor, Tensor]:
    """Positions (in cells) and weights of the samples of every bin along one axis, both (R, size, most)."""
    step = torch.arange(most, device=start.device)
    fraction = (step + 0.5) / number.clamp(min=1)[:, None]
    bins = torch.arange(size, device=start.device)[:, None]
    at = start[:, None, None] + (bins + fraction[:, None]) * (extent / size)[:, None, None]
    valid = (step < number[:, None])[:, None] & (at >= -1) & (at <= cells)
    return at.clamp(0, cells - 1), valid / number.clamp(min=1)[:, None, None]


def _read_points(features: Tensor, image: Tensor, x: Tensor, y: Tensor, x_weight: Tensor, y_weight: Tensor) -> Tensor:
    """Weighted sums over the samples of each bin, (R, size · size, C)."""
    batch, channels, height, width = features.shape
    boxes, size, columns, rows = len(x), x.shape[1], x.shape[2], y.shape[2]
    grid = (boxes, size, size, rows, columns)
    # Stack all images vertically in one map. Samples are clamped to their image, so neighbours do not mix.
    y = (y + image[:, None, None] * height + 0.5) / (batch * height)
    x = (x + 0.5) / width
    places = torch.stack(
        [x[:, None, :, None, :].expand(grid), y[:, :, None, :, None].expand(grid)], dim=-1
    ).reshape(1, boxes * size * size, 1, 1, rows * columns, 2)
    weights = (x_weight[:, None, :, None, :] * y_weight[:, :, None, :, None]).reshape(places.shape[:-1])
    value = features.permute(0, 2, 3, 1).reshape(1, batch * height * width, 1, channels)
    shapes = torch.tensor([[batch * height, width]], device=features.device)
    return _read(value, shapes, places, weights).view(boxes, size * size, channels)


def pyramid_roi_align(
    maps: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, image: Tensor, size: int = 7, finest: float = 14.0
) -> Tensor:
    """Run `roi_align` for each box on the level of its size (FPN, arXiv 1612.03144, equation 1).

    Args:
        maps: (B, C, H_l, W_l), finest first.
        strides: of the levels, in pixels; each is twice the one before.
        boxes, image: as in `roi_align`.
        finest: boxes whose side (the square root of the area) is less than 2 · `finest` cells of the first level use
            that level; each doubling of the side moves one level up.

    Returns:
        (R, C, size, size) float32.
    """
    _, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    side = extent.clamp(min=0).prod(-1).sqrt()
    level = (side / (finest * strides[0]) + 1e-6).log2().floor().clamp(0, len(maps) - 1).long()
    output = maps[0].new_zeros(len(boxes), maps[0].shape[1], size, size, dtype=torch.float32)
    for index, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        here = level == index
        output[here] = roi_align(features, boxes[here], image[here], size, 1 / stride)
    return output
