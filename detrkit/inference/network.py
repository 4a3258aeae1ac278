"""What a `Detector` asks of that which runs its network, be it PyTorch or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from detrkit.datasets.classes import Classes


class Predictions(NamedTuple):
    """Of one image, best first: boxes (N, 4) float32, xyxy in its pixels, scores (N,) float32, classes (N,) int64."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Network(Protocol):
    """Inference backend: prepare images, run the network.

    Attributes:
        classes: of its outputs.
        most_at_once: images of a batch; None for any number.
        soft_nms: IoU threshold that the config or file asks for; 0: no soft-NMS. `Detector` applies it.
    """

    classes: Classes
    most_at_once: int | None
    soft_nms: float

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Prepare an image (H, W, 3) uint8 RGB for the network: (3, h, w)."""

    def detect(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Predictions]:
        """Detect objects in prepared images of one size; boxes are in pixels of images of `sizes` (height, width)."""
