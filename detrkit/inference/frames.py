"""Frames of a film, one after the other: read from a film or a folder of images, written to a film."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np
from PIL import Image

from detrkit.datasets.images import image_suffixes
from detrkit.runtime.extras import pip_install

from .pictures import Picture

EXTRA = pip_install("video")
# Read by programs and browsers without a patented codec; a film whose writing was cut can be played up to there.
SUFFIX, CODEC = ".webm", "VP80"
DEFAULT_RATE = 25.0  # frames per second, of a film that does not say
MISSING_SHARE = 0.02  # of the announced frames, which some containers only estimate


def import_opencv() -> ModuleType:
    """Return the package `cv2`, with its own messages and FFmpeg's switched off.

    Raises:
        ValueError: it is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first film is opened
    try:
        import cv2
    except ImportError as error:
        raise ValueError(f"films need a package, OpenCV: {EXTRA}") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discard what libraries in C print: OpenCV reports a tag of the codec that the format does not need."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


class Film:
    """A film file.

    Args:
        path: of any format that OpenCV reads.

    Attributes:
        name: for messages.
        rate: frames per second.
        total: number of frames, as announced; 0 if it is not known.
        problem: once all frames are read: what is wrong with the film; "" if nothing is.

    Raises:
        ValueError: it cannot be read, or OpenCV is not installed.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path):
        cv2 = import_opencv()
        if not path.is_file():
            raise FileNotFoundError(f"no such film: {path}")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise ValueError(f"{path} is not a film that can be read: it is damaged, or of an unknown format")
        self.name, self.problem = str(path), ""
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = float(rate) if 0 < rate <= 1000 else DEFAULT_RATE
        self.total = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[Picture]:
        """Yield each frame, (H, W, 3) uint8 RGB, upright; the film is read once."""
        count = 0
        while True:
            is_frame, pixels = self._capture.read()
            if not is_frame:
                break
            count += 1
            yield np.ascontiguousarray(pixels[..., ::-1])
        if count < self.total * (1 - MISSING_SHARE) - 1:
            self.problem = f"{self.name} is damaged: {count} of its {self.total} frames can be read"

    def close(self) -> None:
        self._capture.release()


class FrameFolder:
    """A folder whose images are the frames of a film, in the order of their names; "2.png" comes before "10.png".

    Args:
        rate: frames per second.

    Raises:
        FileNotFoundError: the folder has no image.
    """

    def __init__(self, path: Path, rate: float):
        suffixes = image_suffixes()
        self._files = sorted((file for file in path.iterdir() if file.suffix.lower() in suffixes), key=_natural)
        if not self._files:
            raise FileNotFoundError(f"{path} has no image")
        self.name, self.rate, self.total, self.problem = str(path), rate, len(self._files), ""

    def __iter__(self) -> Iterator[Picture]:
        return iter(self._files)

    def close(self) -> None:
        """Nothing is open."""


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


class FilmWriter:
    """Write frames to a film, whose size is that of the first frame; frames of other sizes are scaled to it.

    Args:
        path: replaced if it is there.
        rate: frames per second.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, rate: float):
        self._cv2 = import_opencv()
        self._path, self._rate = path, rate
        self._writer = None
        self._size = (0, 0)

    def write(self, frame: Image.Image) -> None:
        if self._writer is None:
            self._size = tuple(side + side % 2 for side in frame.size)  # the codec takes even sides only
            code = self._cv2.VideoWriter_fourcc(*CODEC)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _stderr_discarded():
                self._writer = self._cv2.VideoWriter(str(self._path), code, self._rate, self._size)
            if not self._writer.isOpened():
                raise OSError(f"cannot write {self._path}: check the folder, and that OpenCV has the codec {CODEC}")
        if frame.size != self._size:
            frame = frame.resize(self._size)
        self._writer.write(np.asarray(frame.convert("RGB"))[..., ::-1])

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
