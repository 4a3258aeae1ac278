"""Numbers and rotated boxes in annotation files."""

from __future__ import annotations

import math


def to_number(text: str | None) -> float | None:
    """A finite number; None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def positive_size(width: str | None, height: str | None) -> tuple[float, float] | None:
    """Width and height, if both are numbers above 0."""
    size = to_number(width), to_number(height)
    return size if None not in size and min(size) > 0 else None


def rotated(left: float, top: float, right: float, bottom: float, degrees: float) -> tuple[float, float, float, float]:
    """The upright box around a box that is rotated clockwise about its centre."""
    angle = math.radians(degrees)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    half_width, half_height = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def rotated_ellipse(x: float, y: float, rx: float, ry: float, degrees: float) -> tuple[float, float, float, float]:
    """The upright box around an ellipse with radii rx and ry that is rotated about its centre (x, y)."""
    angle = math.radians(degrees)
    half_width = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
    half_height = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
    return x - half_width, y - half_height, x + half_width, y + half_height
