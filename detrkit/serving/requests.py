"""What a request asks for: an image, a score threshold, a number of detections."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from detrkit.datasets.images import to_rgb

# Pillow has more decoders, among them EPS, which runs Ghostscript.
Image.init()
FORMATS = [name for name in ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") if name in Image.OPEN]
BAD_REQUEST, TIMEOUT, TOO_LARGE, UNSUPPORTED, UNPROCESSABLE, BUSY = 400, 408, 413, 415, 422, 503


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        message: one line, for the client.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Selection(NamedTuple):
    """Which detections to return: those that score at least `score_threshold`, at most `top`."""

    score_threshold: float
    top: int


def read_selection(query: Mapping[str, str], default: Selection) -> Selection:
    """Read `score_threshold` and `top` of a query.

    Raises:
        RequestError: there is another parameter, or a value is out of range.
    """
    if unknown := sorted(set(query) - set(Selection._fields)):
        names = " and ".join(Selection._fields)
        raise RequestError(BAD_REQUEST, f"there is no parameter {unknown[0]}: choose from {names}")
    return Selection(
        _number(query, "score_threshold", float, default.score_threshold, 0, 1),
        _number(query, "top", int, default.top, 1, math.inf),
    )


def _number(query: Mapping[str, str], name: str, kind: type, default: float, low: float, high: float) -> float:
    if name not in query:
        return default
    try:
        value = kind(query[name])
    except ValueError:
        value = math.nan
    if low <= value <= high:
        return value
    expected = f"a number from {low} to {high}" if high < math.inf else f"a whole number from {low}"
    raise RequestError(BAD_REQUEST, f"{name}={query[name]}: expected {expected}")


def read_pixels(body: bytes, max_pixels: int) -> np.ndarray:
    """Decode an image as RGB, (H, W, 3) uint8, by the rule of `to_rgb`.

    Raises:
        RequestError: it is empty, no image, damaged or too large.
    """
    if not body:
        raise RequestError(BAD_REQUEST, "the request has no body: send the bytes of an image file")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise RequestError(TOO_LARGE, f"the image has {width} x {height} pixels: at most {max_pixels} in all")
            return to_rgb(image)
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        names = ", ".join(FORMATS)
        raise RequestError(UNSUPPORTED, f"the body is not an image that can be read: expected {names}") from error
    except Image.DecompressionBombError as error:
        raise RequestError(TOO_LARGE, f"the image has too many pixels: at most {max_pixels}") from error
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(UNPROCESSABLE, f"the image cannot be read: {reason}") from error
