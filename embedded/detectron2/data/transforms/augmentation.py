"""Random augmentations: each looks at an image and draws the transform to apply to it and to what belongs to it."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = ["AugInput", "Augmentation", "AugmentationList", "apply_augmentations"]


class AugInput:
    """An image and what moves with it. Augmentations replace the attributes.

    Args:
        image: (H, W) or (H, W, C), uint8 in [0, 255] or floating point.
        boxes: (N, 4), x0, y0, x1, y1 in pixels; not clipped to the image by transforms.
        sem_seg: (H, W) integer labels.
    """

    def __init__(self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None):
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Applies `tfm` to all there is, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: "Sequence[Augmentation | Transform]") -> TransformList:
        """Applies the augmentations one after another, in place, and returns what they drew."""
        return AugmentationList(augmentations)(self)


class Augmentation(ABC):
    """A policy that draws a transform. Chance comes from numpy's global generator, which data workers seed."""

    @abstractmethod
    def get_transform(self, *args) -> Transform:
        """Draws a transform. The parameters of an implementation name what it looks at: `image`, `boxes`, `sem_seg`."""

    def __call__(self, aug_input: AugInput) -> Transform:
        """Draws a transform for the input, applies it in place and returns it."""
        transform = self.get_transform(*(getattr(aug_input, name) for name in _inputs_of(type(self))))
        aug_input.transform(transform)
        return transform

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


@functools.cache
def _inputs_of(policy: type[Augmentation]) -> tuple[str, ...]:
    """Names of what `get_transform` looks at."""
    _, *inputs = inspect.signature(policy.get_transform).parameters
    return tuple(inputs)


class AugmentationList(Augmentation):
    """One augmentation after another; fixed transforms may be among them."""

    def __init__(self, augs: Sequence[Augmentation | Transform]):
        self.augs = list(augs)

    def get_transform(self, *args) -> Transform:
        raise NotImplementedError("an AugmentationList draws each transform after applying the one before: call it")

    def __call__(self, aug_input: AugInput) -> TransformList:
        drawn = []
        for step in self.augs:
            if isinstance(step, Transform):
                aug_input.transform(step)
                drawn.append(step)
            else:
                drawn.append(step(aug_input))
        return TransformList(drawn)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Applies augmentations to an image or an AugInput; returns the result (of the same type) and the transforms."""
    aug_input = inputs if isinstance(inputs, AugInput) else AugInput(inputs)
    transforms = aug_input.apply_augmentations(augmentations)
    return (inputs if isinstance(inputs, AugInput) else aug_input.image), transforms
