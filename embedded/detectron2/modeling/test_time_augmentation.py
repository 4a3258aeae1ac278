"""Several versions of a test image."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform, apply_augmentations
from fvcore.transforms.transform import HFlipTransform, NoOpTransform

__all__ = ["DatasetMapperTTA"]


class DatasetMapperTTA:
    """Make the versions of an image for test-time augmentation: several sizes, each also mirrored.

    Args:
        min_sizes: shorter sides in pixels.
        max_size: limit of the longer side.
        flip: mirror each version too.
    """

    def __init__(self, min_sizes: Sequence[int], max_size: int, flip: bool):
        self.min_sizes, self.max_size, self.flip = min_sizes, max_size, flip

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a dict for each version: a copy of the given one with another `image`, and `transforms`.

        Args:
            dataset_dict: has `image` (3, H, W), and `height` and `width` of the original image.

        Returns:
            By size; the mirrored version follows the other. `transforms` lead from the original image to the version.
        """
        pixels = dataset_dict["image"].permute(1, 2, 0).numpy()
        original, given = (dataset_dict["height"], dataset_dict["width"]), pixels.shape[:2]
        first = NoOpTransform() if given == original else ResizeTransform(*original, *given)
        versions = []
        for size in self.min_sizes:
            resized, transforms = apply_augmentations([ResizeShortestEdge(size, self.max_size)], pixels.copy())
            mirror = HFlipTransform(resized.shape[1])
            steps = [(resized, transforms)]
            if self.flip:
                steps.append((mirror.apply_image(resized), transforms + mirror))
            for image, applied in steps:
                version = {key: copy.deepcopy(value) for key, value in dataset_dict.items() if key != "image"}
                version["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
                version["transforms"] = first + applied
                versions.append(version)
        return versions
