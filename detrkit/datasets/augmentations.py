"""Augmentations for configs, as detectron2's: large-scale jitter, colour, and transforms of other libraries.

    dataloader.train.mapper.augmentation.append(L(ColorJitter)(brightness=0.3))

They run in the mappers of detectron2, detrex and the engine. Random numbers come from numpy's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, PadTransform, Transform, TransformList
from PIL import Image, ImageEnhance

MOST = 2**31 - 1  # of a seed


class LargeScaleJitter(T.Augmentation):
    """Resize by a random factor, then crop or pad to a square (arXiv 2012.07177).

    Args:
        size: side of the square in pixels. With factor 1, the longer side of the image gets this length.
        min_scale, max_scale: range of the factor.
        fill: grey of the padding, 0 to 255.
    """

    def __init__(self, size: int = 1024, min_scale: float = 0.1, max_scale: float = 2.0, fill: float = 128.0):
        super().__init__()
        if not (size > 0 and 0 < min_scale <= max_scale):
            raise ValueError(f"LargeScaleJitter: size={size}, scales {min_scale} to {max_scale}: all above 0, in order")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        factor = np.random.uniform(self.min_scale, self.max_scale) * self.size / max(height, width)
        new = max(round(height * factor), 1), max(round(width * factor), 1)
        room = [side - self.size for side in new]
        top, left = (np.random.randint(max(space, 0) + 1) for space in room)
        crop = min(new[0], self.size), min(new[1], self.size)
        pad = self.size - crop[0], self.size - crop[1]
        return TransformList(
            [
                T.ResizeTransform(height, width, *new),
                CropTransform(left, top, crop[1], crop[0], orig_w=new[1], orig_h=new[0]),
                PadTransform(0, 0, pad[1], pad[0], orig_w=crop[1], orig_h=crop[0], pad_value=self.fill),
            ]
        )


class PixelTransform(Transform):
    """Change the pixels of an image by a function, and leave boxes where they are."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        self.function = function

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.function(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class ColorJitter(T.Augmentation):
    """Change brightness, contrast, saturation and hue by random amounts, in random order.

    Args:
        brightness, contrast, saturation: each factor lies between 1 - value and 1 + value.
        hue: largest shift of the hue as a share of the colour circle, up to 0.5.
        prob: probability of any change.
    """

    def __init__(
        self,
        brightness: float = 0.3,
        contrast: float = 0.3,
        saturation: float = 0.3,
        hue: float = 0.02,
        prob: float = 0.8,
    ):
        super().__init__()
        if not (all(0 <= value <= 1 for value in (brightness, contrast, saturation, prob)) and 0 <= hue <= 0.5):
            raise ValueError("ColorJitter: brightness, contrast, saturation and prob are 0 to 1, hue is 0 to 0.5")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        ranges = (self.brightness, self.contrast, self.saturation)
        steps = [(kind, 1 + np.random.uniform(-most, most)) for kind, most in zip(kinds, ranges, strict=True)]
        order = np.random.permutation(len(steps))
        shift = round(np.random.uniform(-self.hue, self.hue) * 255)

        def change(pixels: np.ndarray) -> np.ndarray:
            picture = Image.fromarray(pixels)
            for kind, factor in (steps[index] for index in order):
                picture = kind(picture).enhance(factor)
            return _with_hue_shifted(np.asarray(picture), shift)

        return PixelTransform(change)


def _with_hue_shifted(pixels: np.ndarray, shift: int) -> np.ndarray:
    """Pixels whose hue is turned by `shift` of 255 parts; red and blue may be exchanged, which turns it backwards."""
    if not shift:
        return pixels
    hue, *others = Image.fromarray(pixels).convert("HSV").split()
    turned = hue.point([(value + shift) % 256 for value in range(256)])
    return np.asarray(Image.merge("HSV", [turned, *others]).convert("RGB"))


class LibraryTransform(Transform):
    """Random transforms of another library with fixed random numbers, for an image and for its boxes.

    Args:
        run: from an image (H, W, 3) uint8 and boxes (N, 4) xyxy to both, transformed. It repeats in each call.
        size: (height, width) of the image.
    """

    def __init__(self, run: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], size: tuple[int, int]):
        super().__init__()
        self.run, self.size = run, size

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.run(img, np.zeros((0, 4)))[0])

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        boxes = np.asarray(box, float).reshape(-1, 4)
        if not len(boxes):
            return boxes
        placeholder = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (*self.size, 3))
        return self.run(placeholder, boxes)[1]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError("transforms of other libraries move boxes, not single points: leave masks out")

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        raise NotImplementedError("transforms of other libraries move boxes, not segmentations: leave masks out")


class TorchvisionTransforms(T.Augmentation):
    """Transforms of `torchvision.transforms.v2`; boxes follow.

    Args:
        transforms: in their order; instances, or dicts with the `name` of a class and its arguments, such as
            `dict(name="RandomAffine", degrees=10)`. They may not remove boxes, as RandomIoUCrop and
            SanitizeBoundingBoxes do.

    Raises:
        ImportError: torchvision is not installed, or does not fit this PyTorch.
        ValueError: there is no such transform, or its arguments do not fit.
    """

    def __init__(self, transforms: Sequence[Any]):
        super().__init__()
        try:
            from torchvision.transforms import v2
        except (ImportError, RuntimeError) as error:
            raise ImportError(f"TorchvisionTransforms needs torchvision ({error}): pip install torchvision") from error
        self._transforms = v2.Compose(build_transforms(transforms, v2, v2.Transform, "torchvision.transforms.v2"))

    def get_transform(self, image: np.ndarray) -> Transform:
        seed = np.random.randint(MOST)
        return LibraryTransform(lambda pixels, boxes: self._run(pixels, boxes, seed), image.shape[:2])

    def _run(self, pixels: np.ndarray, boxes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from torchvision import tv_tensors

        image = tv_tensors.Image(torch.as_tensor(np.array(pixels)).permute(2, 0, 1))
        given = torch.as_tensor(boxes, dtype=torch.float32)
        targets = tv_tensors.BoundingBoxes(given, format="XYXY", canvas_size=pixels.shape[:2])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            image, targets = self._transforms(image, targets)
        if len(targets) != len(boxes):
            raise ValueError(
                f"TorchvisionTransforms: {len(boxes) - len(targets)} of {len(boxes)} boxes were removed: leave out "
                "transforms that remove boxes; boxes outside the image are removed afterwards"
            )
        return image.permute(1, 2, 0).numpy(), targets.double().numpy()


class AlbumentationsTransforms(T.Augmentation):
    """Transforms of `albumentations`; boxes follow, and those outside the image are left out.

    Args:
        transforms: in their order; instances, or dicts with the `name` of a class and its arguments, such as
            `dict(name="RandomBrightnessContrast", p=0.5)`.

    Raises:
        ImportError: albumentations is not installed.
        ValueError: there is no such transform, or its arguments do not fit.
    """

    def __init__(self, transforms: Sequence[Any]):
        super().__init__()
        try:
            import albumentations
        except ImportError as error:
            raise ImportError(
                f"AlbumentationsTransforms needs a package: pip install albumentations ({error})"
            ) from error
        self._library = albumentations
        base = albumentations.BasicTransform
        self._transforms = build_transforms(transforms, albumentations, base, "albumentations")

    def get_transform(self, image: np.ndarray) -> Transform:
        boxes = self._library.BboxParams(format="pascal_voc", label_fields=["index"])
        compose = self._library.ReplayCompose(self._transforms, bbox_params=boxes)
        if hasattr(compose, "set_random_seed"):
            compose.set_random_seed(int(np.random.randint(MOST)))
        replay = compose(image=np.zeros_like(image), bboxes=[], index=[])["replay"]

        def run(pixels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            size = np.array([pixels.shape[1], pixels.shape[0]] * 2)
            inside = boxes.clip(0, size)
            usable = [n for n, box in enumerate(inside) if (box[2:] > box[:2]).all()]
            given = {"bboxes": [tuple(inside[n]) for n in usable], "index": usable}
            found = self._library.ReplayCompose.replay(replay, image=np.array(pixels), **given)
            moved = np.zeros_like(boxes)  # without area, so that mappers leave out those outside
            for box, index in zip(found["bboxes"], found["index"], strict=True):
                moved[int(index)] = box[:4]
            return found["image"], moved

        return LibraryTransform(run, image.shape[:2])


def build_transforms(transforms: Sequence[Any], library: Any, base: type, title: str) -> list[Any]:
    """Create the transforms that a config names.

    Args:
        transforms: instances, or mappings with `name` and arguments.
        library: the module of the classes.
        base: their base class.
        title: of the library, for errors.

    Raises:
        ValueError: there is no such transform, or its arguments do not fit.
    """
    built = []
    for entry in transforms:
        if not isinstance(entry, Mapping):
            built.append(entry)
            continue
        arguments = {
            key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for key, value in entry.items()
            if key != "name"
        }
        kind = getattr(library, str(entry.get("name")), None)
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise ValueError(f"{title} has no transform {entry.get('name')!r}: give the name of a class as name=")
        try:
            built.append(kind(**arguments))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{title}.{kind.__name__}: {' '.join(str(error).split())}") from error
    return built
