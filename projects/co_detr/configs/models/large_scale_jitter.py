"""Large-scale jitter: images that fit a square, in training at 0.1 to 2 times its size, cropped and padded to it."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from detrkit.datasets.augmentations import LargeScaleJitter


def train_jitter(size):
    """Return augmentation for squares of `size` pixels; the padding is that of the model's canvas."""
    return [L(T.RandomFlip)(), L(LargeScaleJitter)(size=size, min_scale=0.1, max_scale=2.0, fill=114.0)]


def test_resize(size):
    """Return the resizing of test images to squares of `size` pixels."""
    return [L(T.ResizeShortestEdge)(short_edge_length=size, max_size=size)]
