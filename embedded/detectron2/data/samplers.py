"""Samplers: positions of the images for each process."""

from collections.abc import Iterator
from itertools import islice

import torch
from detectron2.utils import comm
from torch.utils.data import Sampler

__all__ = ["InferenceSampler", "TrainingSampler"]


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


class InferenceSampler(Sampler[int]):
    """Contiguous part of the positions for each process; lengths differ by at most one."""

    def __init__(self, size: int):
        rank, world_size = comm.get_rank(), comm.get_world_size()
        self._part = range(size * rank // world_size, size * (rank + 1) // world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._part)

    def __len__(self) -> int:
        return len(self._part)
