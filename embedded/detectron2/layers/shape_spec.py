"""What modules tell each other about the shape of a feature map."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a (batch, channels, height, width) feature map and its stride to the image; None where unknown."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
