"""Shape of a feature map."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a feature map (batch, channels, height, width), and its stride to the image; None if unknown."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
