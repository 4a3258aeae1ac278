"""Random augmentations: each samples a transform for an image and its annotations."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = ["AugInput", "Augmentation", "AugmentationList", "apply_augmentations"]


class AugInput:
    """An image and its annotations. Augmentations replace the attributes.

    Args:
        image: (H, W) or (H, W, C), uint8 in [0, 255] or floating point.
        boxes: (N, 4), x0, y0, x1, y1 in pixels; transforms do not clip them to the image.
        sem_seg: (H, W) integer labels.
    """

    def __init__(self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None):
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply `tfm` to all attributes in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: "Sequence[Augmentation | Transform]") -> TransformList:
        """Apply the augmentations in order, in place, and return the sampled transforms."""
        return AugmentationList(augmentations)(self)


class Augmentation:
    """Base class of policies that sample a transform. Random numbers come from numpy's global generator.

    A subclass defines `get_transform`, or `__call__` if it needs several transforms.

    Attributes:
        input_args: names of the input's attributes that are passed to `get_transform`, in order. None: "image" if
            `get_transform` has one argument, else the names of its arguments.
    """

    input_args: Sequence[str] | None = None

    def _init(self, params: Mapping[str, Any] | None = None) -> None:
        """Set attributes from a constructor's `locals()`, except `self` and names that begin with `_`."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Sample a transform from the input's attributes, such as `image`, `boxes` and `sem_seg`."""
        raise NotImplementedError(f"{type(self).__name__} defines neither get_transform nor __call__")

    def __call__(self, aug_input: AugInput) -> Transform:
        """Sample a transform for the input, apply it in place and return it.

        Raises:
            TypeError: `get_transform` has `*args` or `**kwargs`, or does not return a Transform.
            AttributeError: the input does not have an attribute of this name.
        """
        if self.input_args is None:
            self.input_args = _arguments_of(self)
        transform = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        if not isinstance(transform, Transform | TransformList):
            raise TypeError(f"{type(self).__name__}.get_transform returned {transform!r}, not a Transform")
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Sample uniform numbers from `low` to `high`, or from 0 to `low` without `high`."""
        lower, upper = (0, low) if high is None else (low, high)
        return np.random.uniform(lower, upper, () if size is None else size)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name != "input_args")
        return f"{type(self).__name__}({settings})"


def _arguments_of(augmentation: Augmentation) -> tuple[str, ...]:
    """Return the names of the input's attributes from the signature of `get_transform`."""
    parameters = inspect.signature(augmentation.get_transform).parameters
    if len(parameters) == 1:
        return ("image",)
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters.values()):
        name = type(augmentation).__name__
        raise TypeError(f"{name}.get_transform has *args or **kwargs: set {name}.input_args to name them")
    return tuple(parameters)


class AugmentationList(Augmentation):
    """Apply augmentations and fixed transforms in order."""

    def __init__(self, augs: Sequence[Augmentation | Transform]):
        self.augs = list(augs)

    def get_transform(self, *args) -> Transform:
        raise NotImplementedError("an AugmentationList has no single transform: call it with an AugInput")

    def __call__(self, aug_input: AugInput) -> TransformList:
        sampled = []
        for step in self.augs:
            if isinstance(step, Transform):
                aug_input.transform(step)
                sampled.append(step)
            else:
                sampled.append(step(aug_input))
        return TransformList(sampled)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Apply augmentations to an image or AugInput; return the result (of the same type) and the transforms."""
    aug_input = inputs if isinstance(inputs, AugInput) else AugInput(inputs)
    transforms = aug_input.apply_augmentations(augmentations)
    return (inputs if isinstance(inputs, AugInput) else aug_input.image), transforms
