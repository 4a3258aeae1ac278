"""Colours of classes, for drawings."""

from __future__ import annotations

import colorsys

RGB = tuple[int, int, int]


def class_colors(count: int) -> list[RGB]:
    """A colour in 0-255 for each class, with hues far apart."""
    hues = [(0.02 + index * 0.618034) % 1 for index in range(count)]
    levels = [(0.5, 0.66, 0.4)[index // 3 % 3] for index in range(count)]
    colors = [colorsys.hls_to_rgb(hue, level, 0.9) for hue, level in zip(hues, levels, strict=True)]
    return [tuple(round(255 * channel) for channel in color) for color in colors]
