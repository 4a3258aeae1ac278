"""Large-scale jitter: images that fit a square, in training at 0.1 to 2 times its size."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T


def train_jitter(size):
    """Return augmentation for squares of `size` pixels."""
    return [
        L(T.RandomFlip)(),
        L(T.ResizeShortestEdge)(short_edge_length=[size // 10, 2 * size], max_size=2 * size, sample_style="range"),
        L(T.RandomCrop)(crop_type="absolute", crop_size=[size, size]),
    ]


def test_resize(size):
    """Return the resizing of test images to squares of `size` pixels."""
    return [L(T.ResizeShortestEdge)(short_edge_length=size, max_size=size)]


SIZE = 1024

train_augmentation = train_jitter(SIZE)
test_augmentation = test_resize(SIZE)
