"""Random cropping."""

from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import CropTransform, Transform

from .augmentation import Augmentation

__all__ = ["RandomCrop"]


class RandomCrop(Augmentation):
    """Crop a rectangle of a given or random size at a random position.

    Args:
        crop_type: meaning of `crop_size`:
            "relative": (height, width) as fractions of the image's size;
            "relative_range": smallest fractions; uniform up to 1;
            "absolute": (height, width) in pixels;
            "absolute_range": smallest and largest side in pixels, both included, sampled for height and width.
            Sizes in pixels are limited to the image's size.
        crop_size: two numbers.

    Raises:
        ValueError: an unknown type, or not two numbers.
    """

    TYPES = ("relative", "relative_range", "absolute", "absolute_range")

    def __init__(self, crop_type: str, crop_size: Sequence[float]):
        if crop_type not in self.TYPES:
            raise ValueError(f"crop_type {crop_type!r}: choose one of {', '.join(self.TYPES)}")
        if len(crop_size) != 2:
            raise ValueError(f"crop_size must be two numbers, not {crop_size!r}")
        self.crop_type = crop_type
        self.crop_size = tuple(crop_size)

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        crop_height, crop_width = self.get_crop_size((height, width))
        top = np.random.randint(height - crop_height + 1)
        left = np.random.randint(width - crop_width + 1)
        return CropTransform(left, top, crop_width, crop_height, width, height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Sample the (height, width) of the crop for an image of size (height, width)."""
        image_height, image_width = image_size
        first, second = self.crop_size
        if self.crop_type == "absolute_range":
            height = np.random.randint(min(image_height, first), min(image_height, second) + 1)
            width = np.random.randint(min(image_width, first), min(image_width, second) + 1)
            return int(height), int(width)
        if self.crop_type == "absolute":
            return min(image_height, int(first)), min(image_width, int(second))
        if self.crop_type == "relative_range":
            first, second = np.random.uniform([first, second], 1.0)
        return int(image_height * first + 0.5), int(image_width * second + 0.5)
