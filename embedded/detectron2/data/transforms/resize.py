"""Resizing with PIL's antialiased filters, or with PyTorch's if they are faster."""

import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

from .augmentation import Augmentation

__all__ = ["ResizeShortestEdge", "ResizeTransform"]

BILINEAR = int(Image.Resampling.BILINEAR)
NEAREST = int(Image.Resampling.NEAREST)
# With vector instructions PyTorch's filter for bytes takes a third of PIL's time. One to four of 10,000 values differ,
# by 1.
VECTORISED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


class ResizeTransform(Transform):
    """Resize images of (h, w) pixels to (new_h, new_w).

    Args:
        interp: one of PIL's `Image.Resampling`; None for bilinear.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (h, w) or (h, w, C), any number of channels; the dtype stays."""
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(f"an image of {img.shape[:2]} pixels was given to a resize of {self.h, self.w}")
        resample = self.interp if interp is None else interp
        if img.dtype == np.uint8 and (img.ndim == 2 or img.shape[2] == 3):
            return self._resize(img, resample)
        # PIL has no images of several float channels.
        planes = img[..., None] if img.ndim == 2 else img
        kind = img.dtype if img.dtype == np.uint8 else np.float32
        resized = [self._resize(plane.astype(kind), resample) for plane in np.moveaxis(planes, -1, 0)]
        return np.stack(resized, axis=-1).astype(img.dtype).reshape(self.new_h, self.new_w, *img.shape[2:])

    def _resize(self, pixels: np.ndarray, resample: int) -> np.ndarray:
        if VECTORISED and resample == BILINEAR and pixels.ndim == 3:
            # PyTorch does not support negative strides (flipped arrays); its flip takes an eighth of NumPy's time.
            mirrored = [axis for axis, stride in enumerate(pixels.strides) if stride < 0]
            unmirrored = np.flip(pixels, mirrored)
            tensor = torch.from_numpy(unmirrored if pixels.flags.writeable else unmirrored.copy()).flip(mirrored)
            size = self.new_h, self.new_w
            resized = F.interpolate(tensor.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)
            return resized[0].permute(1, 2, 0).numpy()
        resized = Image.fromarray(pixels).resize((self.new_w, self.new_h), Image.Resampling(resample))
        return np.asarray(resized)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Convert points (N, 2), (x, y) in pixels, from the old image to the new one."""
        return coords * [self.new_w / self.w, self.new_h / self.h]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize labels (h, w) without mixing them."""
        return self.apply_image(segmentation, interp=NEAREST)

    def inverse(self) -> "ResizeTransform":
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class ResizeShortestEdge(Augmentation):
    """Resize to a random length of the shorter side; keep the aspect ratio up to rounding.

    Args:
        short_edge_length: lengths in pixels, or one length; 0 keeps the size.
        max_size: limit of the longer side in pixels; the shorter side shrinks accordingly.
        sample_style: "choice": one of the lengths; "range": a length between the two given ones, both included.
        interp: one of PIL's `Image.Resampling`, by default bilinear.

    Raises:
        ValueError: an unknown style, or "range" without two lengths.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ):
        if sample_style not in ("choice", "range"):
            raise ValueError(f"sample_style {sample_style!r} must be 'choice' or 'range'")
        lengths = (short_edge_length,) * 2 if isinstance(short_edge_length, int) else tuple(short_edge_length)
        if not lengths or (sample_style == "range" and len(lengths) != 2):
            raise ValueError(f"short_edge_length {lengths} does not fit sample_style {sample_style!r}; 'range' needs 2")
        self.short_edge_length = lengths
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self.sample_style == "choice":
            length = int(np.random.choice(self.short_edge_length))
        else:
            length = int(np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1))
        if length == 0:
            return NoOpTransform()
        new_size = self.get_output_shape(height, width, length, self.max_size)
        return ResizeTransform(height, width, *new_size, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return the new (height, width) in pixels, rounded to the nearest."""
        short, long = float(short_edge_length), short_edge_length / min(oldh, oldw) * max(oldh, oldw)
        if long > max_size:
            shrink = max_size / long
            short, long = short * shrink, long * shrink
        sides = max(1, int(short + 0.5)), max(1, int(long + 0.5))
        return sides if oldh < oldw else sides[::-1]
