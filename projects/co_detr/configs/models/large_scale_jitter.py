from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

SIZE = 1024

train_augmentation = [
    L(T.RandomFlip)(),
    L(T.ResizeShortestEdge)(short_edge_length=[SIZE // 10, 2 * SIZE], max_size=2 * SIZE, sample_style="range"),
    L(T.RandomCrop)(crop_type="absolute", crop_size=[SIZE, SIZE]),
]
test_augmentation = [L(T.ResizeShortestEdge)(short_edge_length=SIZE, max_size=SIZE)]
