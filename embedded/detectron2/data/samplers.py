"""Samplers: positions of the images for each process."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch
from detectron2.utils import comm
from torch.utils.data import Sampler

__all__ = ["InferenceSampler", "RepeatFactorTrainingSampler", "TrainingSampler"]


class TrainingSampler(Sampler[int]):
    """Endless stream of positions: permutations of the dataset, distributed to the processes in turn.

    Args:
        size: length of the dataset.
        shuffle: if false, repeat the dataset's order.
        seed: seed of the permutations, the same in all processes; None: a random seed, shared by the processes.

    Raises:
        ValueError: the dataset is empty.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if size <= 0:
            raise ValueError("cannot train: the dataset is empty")
        self._size = size
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from islice(self._stream(), self._rank, None, self._world_size)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            order = torch.randperm(self._size, generator=generator) if self._shuffle else torch.arange(self._size)
            yield from order.tolist()


class RepeatFactorTrainingSampler(Sampler[int]):
    """Endless stream of positions in which images of rare classes come more often (LVIS, arXiv 1908.03195).

    In each pass an image comes as often as its repeat factor says: the integer part of it, and once more with a
    probability of the fractional part.

    Args:
        repeat_factors: one number per image, at least 1, see `repeat_factors_from_category_frequency`.
        shuffle: if false, keep the dataset's order in each pass.
        seed: seed of the stream, the same in all processes; None: a random seed, shared by the processes.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None):
        self._factors = torch.as_tensor(repeat_factors, dtype=torch.float32)
        if not len(self._factors):
            raise ValueError("cannot train: the dataset is empty")
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: Sequence[Mapping], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Return r(I) = max over the classes c of an image of max(1, sqrt(t / f(c))), one number per image.

        Args:
            dataset_dicts: the images, with `category_id` in their `annotations`.
            repeat_thresh: t, the share of images below which a class is repeated.
            sqrt: take the square root.

        f(c) is the share of images that have the class.
        """
        classes = [{annotation["category_id"] for annotation in image["annotations"]} for image in dataset_dicts]
        count = Counter(number for image in classes for number in image)
        ratio = {number: repeat_thresh * len(classes) / images for number, images in count.items()}
        factor = {number: max(1.0, math.sqrt(value) if sqrt else value) for number, value in ratio.items()}
        return torch.tensor([max((factor[number] for number in image), default=1.0) for image in classes])

    def __iter__(self) -> Iterator[int]:
        yield from islice(self._stream(), self._rank, None, self._world_size)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            more = torch.rand(len(self._factors), generator=generator) < self._factors.frac()
            positions = torch.arange(len(self._factors)).repeat_interleave(self._factors.int() + more)
            if self._shuffle:
                positions = positions[torch.randperm(len(positions), generator=generator)]
            yield from positions.tolist()


class InferenceSampler(Sampler[int]):
    """Contiguous part of the positions for each process; lengths differ by at most one."""

    def __init__(self, size: int):
        rank, world_size = comm.get_rank(), comm.get_world_size()
        self._part = range(size * rank // world_size, size * (rank + 1) // world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._part)

    def __len__(self) -> int:
        return len(self._part)
