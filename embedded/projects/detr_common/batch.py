"""Batches of images of different sizes: padding masks, and features that do not depend on padding."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor

Size = tuple[int, int]  # height, width


def padding_mask(sizes: Sequence[Size], padded: Size, device: torch.device | str) -> Tensor:
    """Return a mask (B, H, W), true in padding, for images of `sizes` in the top-left corner of size `padded`."""
    heights, widths = torch.tensor([tuple(size) for size in sizes], device=device).T[..., None]
    below = torch.arange(padded[0], device=device) >= heights
    beside = torch.arange(padded[1], device=device) >= widths
    return below[:, :, None] | beside[:, None, :]


def resize_mask(mask: Tensor, size: Size) -> Tensor:
    """Resize a mask (B, H, W) to (B, h, w) by nearest-neighbour interpolation."""
    return F.interpolate(mask[None].float(), size=size, mode="nearest")[0].bool()


def extract_features(
    extractor: Callable[[Tensor], Sequence[Tensor]], images: ImageList, exact: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute the feature maps of a padded batch and their padding masks.

    Args:
        extractor: function of normalised images (B, 3, H, W); returns maps (B, C_l, H_l, W_l), finest level first.
        images: the padded batch.
        exact: give each image the features that it has alone. Padding changes the output of convolutions near it and
            of group norms. So images of different sizes pass through `extractor` one by one, and the maps are padded
            afterwards. For inference, where detections must not depend on other images of the batch.

    Returns:
        One map (B, C_l, H_l, W_l) and one mask (B, H_l, W_l), true in padding, per level.
    """
    device = images.tensor.device
    canvas = tuple(images.tensor.shape[-2:])
    is_full = all(tuple(size) == canvas for size in images.image_sizes)
    if is_full or not exact or len(set(map(tuple, images.image_sizes))) == 1:
        maps = list(extractor(images.tensor))
        if is_full:  # no padding; `torch.export` can follow this
            return maps, [level.new_zeros((level.shape[0], *level.shape[-2:]), dtype=torch.bool) for level in maps]
        mask = padding_mask(images.image_sizes, canvas, device)
        return maps, [resize_mask(mask, level.shape[-2:]) for level in maps]

    maps, masks = [], []
    for level in zip(*(extractor(image[None]) for image in images), strict=True):
        sizes = [tuple(single.shape[-2:]) for single in level]
        height, width = (max(extent) for extent in zip(*sizes, strict=True))
        padded = [F.pad(x, (0, width - w, 0, height - h)) for x, (h, w) in zip(level, sizes, strict=True)]
        maps.append(torch.cat(padded))
        masks.append(padding_mask(sizes, (height, width), device))
    return maps, masks
