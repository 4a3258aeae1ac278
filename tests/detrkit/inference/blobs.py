"""A network that finds drawn rectangles by their colour, for what is around networks: tiles, films."""

import numpy as np
from scipy import ndimage

from detrkit.datasets.classes import Classes
from detrkit.inference.network import Predictions

COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230)}
SMALLEST = 8  # pixels of a side, after scaling


class Blobs:
    """In place of `OnnxNetwork`: one detection for each connected area of a colour.

    Args:
        longest: images are scaled down by a whole number until no side is longer; None: they are not.
    """

    score_threshold = None
    most_at_once = None
    soft_nms = 0.0

    def __init__(self, longest=None):
        self.classes = Classes.named(list(COLORS))
        self.longest = longest
        self.sizes = []  # of the images that were detected in

    def prepare(self, pixels):
        factor = 1 if self.longest is None else -(-max(pixels.shape[:2]) // self.longest)
        return pixels[::factor, ::factor].transpose(2, 0, 1)

    def detect(self, images, sizes):
        self.sizes += sizes
        return [self._detect(image.astype(int), size) for image, size in zip(images, sizes, strict=True)]

    def _detect(self, image, size):
        boxes, scores, classes = [], [], []
        factor = -(-size[0] // image.shape[1])
        for number, color in enumerate(COLORS.values()):
            is_color = np.abs(image - np.reshape(color, (3, 1, 1))).max(axis=0) < 80
            for rows, columns in ndimage.find_objects(ndimage.label(is_color)[0]):
                if factor > 1 and min(rows.stop - rows.start, columns.stop - columns.start) < SMALLEST:
                    continue
                boxes.append(factor * np.array([columns.start, rows.start, columns.stop, rows.stop]))
                scores.append(0.55 + 0.4 * ((7 * rows.start + 13 * columns.stop + size[1]) % 97) / 97)
                classes.append(number)
        order = np.argsort(-np.array(scores, np.float32), kind="stable")
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        return Predictions(boxes[order], np.array(scores, np.float32)[order], np.array(classes, np.int64)[order])


def draw(height, width, objects):
    """Pixels of rectangles `(class, left, top, right, bottom)` on grey."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    for number, left, top, right, bottom in objects:
        pixels[top:bottom, left:right] = list(COLORS.values())[number]
    return pixels
