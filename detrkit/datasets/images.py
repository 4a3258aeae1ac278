"""Image files of any kind as 8-bit RGB. Training, evaluation, `Detector` and the demo use it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

WHITE = 0xFFFF  # of integers with more than 8 bits
DARKEST_WHITE = 1 << 12  # a brightest value below it means 12 bits or fewer in a wider type
ROUNDING = 1e-3  # by which float values may leave [0, 1]
JPEG = b"\xff\xd8\xff"  # how files of the format begin; it has 8 bits and no transparency
PLAIN_MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"}


class UnknownRange(ValueError):
    """The range of an image's values is not known."""


def image_suffixes() -> set[str]:
    """The suffixes of the formats that Pillow reads here, such as ".jpg"; plug-ins count."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}


def read_image(path: str | Path) -> np.ndarray:
    """Read a file as RGB, (H, W, 3) uint8, by the rule of `to_rgb`.

    Raises:
        OSError: there is no such file, or it is no image. Pillow's decoders raise other errors too on damaged files.
        UnknownRange: its values have no known range.
    """
    with Image.open(path) as file:
        return to_rgb(file)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image to RGB, (H, W, 3) uint8, as a viewer shows it.

    * The image is turned upright, as its EXIF data say.
    * Transparent pixels are shown on white.
    * Integers of more than 8 bits: 65535 is white.
    * Floats: 1 is white.

    Raises:
        UnknownRange: the values are outside that range, or the brightest integer is below 4096, so that the image would
            be nearly black, as with 12-bit values in a wider type.
    """
    has_wide_channels = _has_wide_channels(image)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        image = _float_to_grey(image)
    elif image.mode.startswith("I"):
        image = _wide_to_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("RGB"))
    if has_wide_channels:  # Pillow keeps the high bytes
        _check_brightest(int(pixels.max(initial=0)) << 8)
    return pixels


def is_plain(path: str | Path) -> bool:
    """Whether `image.convert("RGB")` gives the same as `to_rgb`, except for the orientation."""
    with open(path, "rb") as file:
        if file.read(len(JPEG)) == JPEG:  # opening it as an image takes ten times as long
            return True
        with Image.open(file) as image:
            return _is_plain(image)


def check_values(image: Image.Image) -> None:
    """Decode an opened image, and raise the errors of `to_rgb`."""
    if _is_plain(image):
        image.load()
    else:
        to_rgb(image)


def _is_plain(image: Image.Image) -> bool:
    return image.mode in PLAIN_MODES and not image.has_transparency_data and not _has_wide_channels(image)


def _has_wide_channels(image: Image.Image) -> bool:
    """Whether a file that is not decoded yet has colour channels of 16 bits, which Pillow reads as 8 bits."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def _float_to_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not -ROUNDING <= low <= high <= 1 + ROUNDING:  # also if one of them is nan
        raise UnknownRange(f"its float values go from {low:g} to {high:g}: scale them to [0, 1], or save 8 bits")
    return Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8))


def _wide_to_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > WHITE:
        raise UnknownRange(f"its integers go from {low} to {high}: scale them to [0, {WHITE}], or save 8 bits")
    _check_brightest(high)
    grey = (values >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:  # the one value that a PNG may declare so
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _check_brightest(high: int) -> None:
    if 0 < high < DARKEST_WHITE:
        raise UnknownRange(
            f"its integers have more than 8 bits and end at {high}, though {WHITE} is white: scale 12-bit and similar "
            "values, or save 8 bits"
        )
