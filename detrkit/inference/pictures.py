"""Images of all kinds as arrays of pixels, and detections drawn on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image

from detrkit.datasets.images import read_image, to_rgb
from detrkit.runtime.colors import class_colors
from detrkit.runtime.text import plural

from .fonts import label_font

logger = logging.getLogger(__name__)

MIN_SIDE = 480  # pixels of the longer side of an image; smaller images are enlarged, or labels would hide them
Picture = str | os.PathLike | np.ndarray | Image.Image
CHANNEL_ORDERS = ("RGB", "BGR")
COLORS = class_colors(100)


def is_picture(value: object) -> bool:
    """Whether a value is one image, not several."""
    return isinstance(value, Picture)


def read_picture(picture: Picture, channel_order: str = "RGB") -> np.ndarray:
    """RGB, (H, W, 3) uint8, as a viewer shows it.

    Args:
        picture: a file, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8.
        channel_order: of an array's first three channels: "RGB", or "BGR" as OpenCV has them. Files and PIL images
            know their own.

    Raises:
        ValueError: it is none of these.
        OSError: a file that cannot be read as an image.
    """
    if isinstance(picture, np.ndarray):
        return _array_as_rgb(picture, channel_order)
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if not is_picture(picture):
        raise ValueError(f"a picture is a file, a PIL image or a NumPy array, not a {type(picture).__name__}")
    if Path(picture).is_dir():
        raise ValueError(f"{picture} is a folder: give its files, such as sorted(Path({str(picture)!r}).glob('*.jpg'))")
    return read_image(picture)


def _array_as_rgb(pixels: np.ndarray, channel_order: str) -> np.ndarray:
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not is_image or pixels.size == 0:
        raise ValueError(
            f"an array of shape {pixels.shape} and {pixels.dtype}: a picture is (H, W, 3), (H, W, 4) or (H, W), uint8 "
            "from 0 to 255"
        )
    if channel_order not in CHANNEL_ORDERS:
        raise ValueError(f"channel_order={channel_order!r} is none of {', '.join(CHANNEL_ORDERS)}")
    if pixels.ndim == 3 and pixels.shape[2] >= 3 and channel_order == "BGR":
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)))


def name_of(picture: Picture, index: int) -> str:
    """What to call a picture: its file, or its place among those that were given, from 0."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    return getattr(picture, "filename", "") or f"picture {index}"


def all_of(pictures: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """Return an iterable of one or several images."""
    return [pictures] if is_picture(pictures) else pictures


def readable_images(files: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield files and their pixels, (H, W, 3) RGB uint8; files that cannot be read are left out, with a warning.

    Raises:
        ValueError: none of the files can be read.
    """
    count = 0
    for file in files:
        try:
            pixels = read_image(file)
        except Exception as error:  # Pillow's decoders raise many kinds on broken files
            logger.warning("left out %s: %s", file, reason_of(error))
            continue
        count += 1
        yield file, pixels
    if files and not count:
        raise ValueError(f"none of {plural(len(files), 'image')} can be read, such as {files[0]}")


def reason_of(error: BaseException) -> str:
    """Why an image cannot be read, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def draw(
    pixels: np.ndarray, instances: Instances, metadata: object, font: str | os.PathLike | None = None
) -> Image.Image:
    """Draw detections on an image, with one colour for each class.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        metadata: `thing_classes` are the names of classes; `thing_colors` are set if they are missing.
        font: a font file for the labels; None: see `label_font`.
    """
    names = getattr(metadata, "thing_classes", None) or ()
    if not hasattr(metadata, "thing_colors"):
        metadata.thing_colors = class_colors(len(names))
    with label_font(names, font):
        visualizer = Visualizer(pixels, metadata, scale=_scale(pixels), instance_mode=ColorMode.SEGMENTATION)
        return Image.fromarray(visualizer.draw_instance_predictions(instances, jittering=False).get_image())


def draw_boxes(
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    numbers: Sequence[int],
    font: str | os.PathLike | None = None,
) -> Image.Image:
    """Draw N boxes with labels of their own on an image, with one colour for each number.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        boxes: (N, 4), left, top, right, bottom in pixels.
        numbers: N, such as classes or tracks, from 0.
        font: see `draw`.
    """
    rgb = [tuple(channel / 255 for channel in COLORS[number % len(COLORS)]) for number in numbers]
    with label_font(labels, font):
        visualizer = Visualizer(pixels, None, scale=_scale(pixels))
        drawn = visualizer.overlay_instances(boxes=boxes, labels=labels, assigned_colors=rgb, alpha=1.0)
        return Image.fromarray(drawn.get_image())


def _scale(pixels: np.ndarray) -> float:
    return max(1.0, MIN_SIDE / max(pixels.shape[:2]))
