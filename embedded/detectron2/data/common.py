"""Datasets: serialized lists, mapped items, batches grouped by aspect ratio."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "trivial_batch_collator"]


def trivial_batch_collator(batch: list) -> list:
    """Return the list of items as the batch."""
    return batch


class DatasetFromList(Dataset):
    """Dataset of a list.

    Args:
        lst: the items.
        copy: return copies of the items, so that a mapper may change them; without effect if serialized.
        serialize: keep the items pickled in one tensor. Otherwise reference counting would duplicate the memory pages
            of small Python objects in every worker; for COCO these are gigabytes.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool = True):
        self._copy = copy
        self._serialize = serialize
        if not serialize:
            self._items = lst
            return
        pickles = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in lst]
        self._ends = torch.tensor([len(p) for p in pickles], dtype=torch.int64).cumsum(0)
        self._bytes = torch.from_numpy(np.frombuffer(bytearray().join(pickles), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._ends if self._serialize else self._items)

    def __getitem__(self, idx: int) -> Any:
        if not self._serialize:
            return deepcopy(self._items[idx]) if self._copy else self._items[idx]
        position = range(len(self))[idx]
        start = self._ends[position - 1].item() if position else 0
        return pickle.loads(memoryview(self._bytes[start : self._ends[position]].numpy()))


class MapDataset(Dataset):
    """Dataset that applies `map_func` to the items of a dataset."""

    def __init__(self, dataset: Dataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        return self._map_func(self._dataset[idx])


class AspectRatioGroupedDataset(IterableDataset):
    """Batches of only wide or only high images, which need less padding.

    Args:
        dataset: endless iterable of dicts with `width` and `height` in pixels; incomplete batches are dropped.
        batch_size: images per batch.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[dict]]:
        waiting: dict[bool, list[dict]] = {True: [], False: []}
        for item in self.dataset:
            wide = item["width"] > item["height"]
            waiting[wide].append(item)
            if len(waiting[wide]) == self.batch_size:
                yield waiting[wide]
                waiting[wide] = []
