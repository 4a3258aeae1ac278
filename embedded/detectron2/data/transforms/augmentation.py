"""Random augmentations: each samples a transform for an image, its boxes and its masks."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

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


class Augmentation:
    """A policy that draws a transform. Chance comes from numpy's global generator, which data workers seed.

    A subclass defines `get_transform`, or `__call__` where one transform is not enough.

    Attributes:
        input_args: names of the input's attributes that `get_transform` takes, in order. None means "image" if it
            takes one argument, whatever its name; else for the names of its arguments.
    """

    input_args: Sequence[str] | None = None

    def _init(self, params: Mapping[str, Any] | None = None) -> None:
        """Set attributes from a constructor's `locals()`: all but `self` and names that begin with `_`."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Draw a transform from the input's attributes, such as `image`, `boxes` and `sem_seg`."""
        raise NotImplementedError(f"{type(self).__name__} defines neither get_transform nor __call__")

    def __call__(self, aug_input: AugInput) -> Transform:
        """Draw a transform for the input, apply it in place and return it.

        Raises:
            TypeError: `get_transform` takes any number of arguments, or returns something other than a Transform.
            AttributeError: it takes something that the input does not have.
        """
        if self.input_args is None:
            self.input_args = _arguments_of(self)
        transform = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        if not isinstance(transform, Transform | TransformList):
            raise TypeError(f"{type(self).__name__}.get_transform returned {transform!r}, not a Transform")
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Uniform numbers from `low` to `high`, or from 0 to `low` if there is no `high`."""
        lower, upper = (0, low) if high is None else (low, high)
        return np.random.uniform(lower, upper, () if size is None else size)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name != "input_args")
        return f"{type(self).__name__}({settings})"


def _arguments_of(augmentation: Augmentation) -> tuple[str, ...]:
    """The attributes of the input that `get_transform` takes, by its signature."""
    parameters = inspect.signature(augmentation.get_transform).parameters
    if len(parameters) == 1:
        return ("image",)
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters.values()):
        name = type(augmentation).__name__
        raise TypeError(f"{name}.get_transform takes any number of arguments: set {name}.input_args to name them")
    return tuple(parameters)


class AugmentationList(Augmentation):
    """One augmentation after another; fixed transforms may be among them."""

    def __init__(self, augs: Sequence[Augmentation | Transform]):
        self.augs = list(augs)

    def get_transform(self, *args) -> Transform:
        raise NotImplementedError("an AugmentationList draws each transform after applying the one before: call it")

    def __call__(self, aug_input: AugInput) -> TransformList:
        transforms = []
        for step in self.augs:
            if isinstance(step, Transform):
                aug_input.transform(step)
                transforms.append(step)
            else:
                transforms.append(step(aug_input))
        return TransformList(transforms)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Applies augmentations to an image or an AugInput; returns the result (of the same type) and the transforms."""
    aug_input = inputs if isinstance(inputs, AugInput) else AugInput(inputs)
    transforms = aug_input.apply_augmentations(augmentations)
    return (inputs if isinstance(inputs, AugInput) else aug_input.image), transforms
