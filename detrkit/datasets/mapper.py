"""Dataset mappers that read images by the rule of `images.to_rgb`, on both platforms."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import count
from typing import IO, Any

import numpy as np
from detectron2.data.detection_utils import check_image_size
from detectron2.utils.file_io import PathManager
from detrex.data import DetrDatasetMapper
from iopath.common.file_io import PathHandler

from .images import is_plain, read_image

Mapper = Callable[[dict[str, Any]], Any]


class RgbImageMapper:
    """Call a `DetrDatasetMapper` with 8-bit RGB images on white, whatever the files hold.

    The mapper reads by detectron2's `read_image`, which shows the colour below transparent pixels and clips 16-bit and
    float values. It gets an image of such a kind under a name that `PathManager` opens as the converted image.
    """

    def __init__(self, mapper: DetrDatasetMapper):
        self.mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """What the mapper makes of the image.

        Raises:
            OSError: the image is missing or broken, or its values have no known range.
            ValueError: its size is not the annotated one.
        """
        file_name = dataset_dict["file_name"]
        if file_name.startswith(_RgbHandler.PREFIX):
            return self.mapper(dataset_dict)
        if _reads_plainly(file_name):
            try:
                return self.mapper(dataset_dict)
            except OSError as error:  # detectron2's reader passes on Pillow's messages, which lack the name
                if str(file_name) in str(error):
                    raise
                raise OSError(f"cannot read image file {file_name}: {error}") from error
        try:
            pixels = read_image(file_name)
        except Exception as error:  # Pillow's decoders raise many kinds on broken files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"cannot read image file {file_name}: {reason}") from error
        check_image_size(dict(dataset_dict), pixels)
        example = self.mapper({**dataset_dict, "file_name": offered_name(pixels)})
        return {**example, "file_name": file_name}


def offered_name(pixels: np.ndarray) -> str:
    """A name under which detectron2's reader finds an image once, RGB, (H, W, 3) uint8."""
    return _handler.offer(pixels)


def with_rgb_images(mapper: Mapper | None) -> Mapper | None:
    """Wrap a `DetrDatasetMapper` in an `RgbImageMapper`; return other mappers unchanged."""
    return RgbImageMapper(mapper) if isinstance(mapper, DetrDatasetMapper) else mapper


def _reads_plainly(file_name: str) -> bool:
    """Whether the mapper's own reader reads the file: it needs no conversion, or cannot be opened here."""
    try:
        return is_plain(file_name)
    except Exception:  # as above; the mapper's reader says what is wrong, and opens URLs
        return True


class _RgbHandler(PathHandler):
    """Opens each name that `offer` returned, once, as a PPM file."""

    PREFIX = "rgb-image://"

    def __init__(self):
        super().__init__()
        self._names = map(f"{self.PREFIX}{{}}.ppm".format, count())
        self._files: dict[str, bytes] = {}

    def offer(self, pixels: np.ndarray) -> str:
        """A name for an image, RGB, (H, W, 3) uint8."""
        height, width = pixels.shape[:2]
        name = next(self._names)
        self._files[name] = b"P6 %d %d 255\n" % (width, height) + pixels.tobytes()
        return name

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[bytes]:
        return io.BytesIO(self._files.pop(path))


_handler = _RgbHandler()
PathManager.register_handler(_handler)
