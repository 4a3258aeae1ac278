"""Training images as a stream in which the position determines image and augmentation.

Position p is image p % size of shuffle p // size, and its augmentation uses generators seeded with p. A process that
knows the positions it has not trained on yet can therefore resume exactly, with any number of data workers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, count, islice
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.utils import comm
from omegaconf import DictConfig
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from detrkit.datasets.mapper import with_rgb_images

from .data_workers import is_worker_death, next_batch, prepare_worker
from .randomness import random_states_kept, seed_cpu
from .rare_classes import sample_size, systematic_sample

POSITION = "stream_position"
SHUFFLE, AUGMENTATION = 0, 1  # purposes of a seed
WORKER_OPTIONS = ("multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout")  # of DataLoader


class SampleStream(IterableDataset):
    """The training examples at `waiting`, then at `front`, `front + step`, … without end.

    Args:
        dataset: items by number.
        mapper: from an item to a training example, a dict, or to None if the item cannot be used; then a random other
            item takes its place. `stream_position` is added to the dict.
        seed: seed of shuffles and augmentation.
        waiting: positions that come first.
        front, step: the positions after them are `front`, `front + step`, …
        chunk: number of consecutive positions that a data worker reads: its batch size if workers make batches, else
            1. It keeps the order of the stream for any number of workers.
        factors: how often each item comes in an epoch, on average; None for once. See `rare_classes`.
    """

    def __init__(
        self,
        dataset: Dataset,
        mapper: Callable[[Any], dict | None],
        *,
        seed: int,
        waiting: Sequence[int] = (),
        front: int = 0,
        step: int = 1,
        chunk: int = 1,
        factors: Sequence[float] | None = None,
    ):
        self._dataset, self._mapper, self._seed = dataset, mapper, seed
        self._step, self._chunk, self._factors = step, chunk, factors
        self._size = len(dataset) if factors is None else sample_size(factors)
        self.start_from(waiting, front)
        self._order = lru_cache(2)(self._shuffled)

    def start_from(self, waiting: Sequence[int], front: int) -> None:
        """Set the positions that the next iteration starts with."""
        self._waiting, self._front = tuple(waiting), front

    def __iter__(self) -> Iterator[dict]:
        positions: Iterable[int] = chain(self._waiting, count(self._front, self._step))
        worker = get_worker_info()
        if worker is not None:
            prepare_worker()
            positions = _every_nth_chunk(positions, worker.id, worker.num_workers, self._chunk)
        return map(self.example, positions)

    def example(self, position: int) -> dict:
        """The example at a position, the same in every call. Seeds the CPU generators with the position."""
        epoch, place = divmod(position, self._size)
        seed_cpu(self._seed, position, AUGMENTATION)
        example = self._map(self._order(epoch)[place].item())
        while example is None:
            example = self._map(int(torch.randint(len(self._dataset), ())))
        if not isinstance(example, dict):
            raise ValueError(f"the mapper of dataloader.train made a {type(example).__name__}, not a dict")
        return {**example, POSITION: position}

    def _map(self, number: int) -> dict | None:
        item = self._dataset[number]
        try:
            return self._mapper(item)
        except (Image.DecompressionBombError, SyntaxError) as error:  # SyntaxError: a broken PNG
            name = item.get("file_name") if isinstance(item, Mapping) else number
            raise OSError(f"cannot read image file {name}: {error}") from error

    def _shuffled(self, epoch: int) -> torch.Tensor:  # a list would take five times the memory in each worker
        with random_states_kept():
            seed_cpu(self._seed, epoch, SHUFFLE)
            order = torch.randperm(self._size)
            if self._factors is not None:
                order = systematic_sample(self._factors, torch.rand(()).item())[order]
            return order

    def __getstate__(self) -> dict:  # spawned workers pickle this object, which the cache does not allow
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._order = lru_cache(2)(self._shuffled)


def _every_nth_chunk(positions: Iterable[int], first: int, n: int, size: int) -> Iterator[int]:
    positions = iter(positions)
    for number in count():
        chunk = list(islice(positions, size))
        if number % n == first:
            yield from chunk


class _Tagged:
    """A collate function that returns the positions of the examples, and the batch."""

    def __init__(self, collate: Callable[[list], Any] | None):
        self._collate = collate

    def __call__(self, batch: list[dict]) -> tuple[list[int], Any]:
        positions = [example.pop(POSITION) for example in batch]
        return positions, batch if self._collate is None else self._collate(batch)


class ResumableLoader:
    """An endless stream of batches whose position can be saved and restored.

    Iterating it does not change the random generators of the process. If a data worker dies, this process continues
    with the same batches without workers.

    Args:
        dataset, mapper: see `SampleStream`; without a mapper the items are the examples.
        build: from a `SampleStream` and a collate function to an iterable of batches.
        build_in_process: the same without data workers; None makes the death of a worker an error.
        collate: from a list of examples to a batch; None for the list itself.
        chunk, factors: as in `SampleStream`.

    Attributes:
        worker_death: PyTorch's message about a data worker that died; empty if none did.
    """

    def __init__(
        self,
        dataset: Dataset,
        mapper: Callable[[Any], dict | None] | None,
        build: Callable[[SampleStream, Callable], Iterable],
        *,
        build_in_process: Callable[[SampleStream, Callable], Iterable] | None = None,
        collate: Callable[[list], Any] | None = None,
        chunk: int = 1,
        factors: Sequence[float] | None = None,
    ):
        self._dataset, self._mapper = dataset, mapper or dict
        self._factors = factors
        self._size = len(dataset) if factors is None else sample_size(factors)
        self._build, self._build_in_process = build, build_in_process
        self._collate, self._chunk = _Tagged(collate), chunk
        self._seed = comm.shared_random_seed()
        self._step = comm.get_world_size()
        self._front = comm.get_rank()
        self._waiting: list[int] = []
        self.worker_death = ""

    def __iter__(self) -> Iterator[Any]:
        gc.collect()  # workers would keep what this process has not freed yet, after COCO's annotations 100 MB
        with random_states_kept():
            batches = iter(self._build(self._stream(), self._collate))
            # Built now, as all processes of a run have to build it together, and a worker dies in one of them.
            spare_stream = self._stream()
            spare = self._build_in_process(spare_stream, self._collate) if self._build_in_process else None
        while True:
            try:
                with random_states_kept():
                    positions, batch = next_batch(batches)
            except RuntimeError as error:
                if spare is None or self.worker_death or not is_worker_death(error):
                    raise
                self.worker_death = " ".join(str(error).split())
                spare_stream.start_from(self._waiting, self._front)
                with random_states_kept():
                    batches = iter(spare)
                continue
            self._mark_returned(positions)
            yield batch

    def _stream(self) -> SampleStream:
        """The examples that have not been returned yet."""
        return SampleStream(
            self._dataset,
            self._mapper,
            seed=self._seed,
            waiting=self._waiting,
            front=self._front,
            step=self._step,
            chunk=self._chunk,
            factors=self._factors,
        )

    def _mark_returned(self, positions: list[int]) -> None:
        # Examples come in the order of the stream. One before the newest is either in a batch, or waits until a batch
        # of its shape is full.
        newest = max(positions)
        while self._front <= newest:
            self._waiting.append(self._front)
            self._front += self._step
        given = set(positions)
        self._waiting = [position for position in self._waiting if position not in given]

    def state_dict(self) -> dict[str, Any]:
        """Position of this process after the last batch."""
        return {
            "seed": self._seed,
            "size": self._size,
            "front": self._front,
            "waiting": list(self._waiting),
        }

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]]) -> str:
        """Resume from the `state_dict()` of all processes of an earlier run. Call it before the first batch.

        With the same number of processes each resumes exactly. Otherwise the images that no process has trained on yet
        are distributed again, and every image still comes once per epoch.

        Returns:
            What could not be restored, for a warning; "" if nothing was lost.
        """
        size = self._size
        if states[0]["size"] != size:
            return f"there are {size} training images now, {states[0]['size']} before: the data start over"
        self._seed = states[0]["seed"]
        rank = comm.get_rank()
        if len(states) == self._step:
            self._front, self._waiting = states[rank]["front"], list(states[rank]["waiting"])
            return ""
        front = max(state["front"] for state in states)
        unread = [p for state in states for p in range(state["front"], front, len(states))]
        left = sorted(unread + [position for state in states for position in state["waiting"]])
        self._front, self._waiting = front + rank, left[rank :: self._step]
        return (
            f"{self._step} process(es) now, {len(states)} before: every image still comes once per epoch, but in other "
            "batches and with other random numbers than without the interruption"
        )


def resumable_loader(
    node: DictConfig,
    dataset: Any,
    factors: Sequence[float] | None = None,
    mix: Callable[[Callable, Dataset], Callable] = lambda mapper, dataset: mapper,
) -> ResumableLoader | None:
    """Build the loader of a config as a `ResumableLoader`.

    Args:
        node: a call of detectron2's `build_detection_train_loader`.
        dataset: its dataset, instantiated.
        factors: as in `SampleStream`.
        mix: from the mapper and the dataset to the mapper to use.

    Returns:
        None if the data cannot be resumed: another loader, a sampler in the config, or an iterable dataset.
    """
    target = node.get("_target_")
    name = f"{build_detection_train_loader.__module__}.{build_detection_train_loader.__qualname__}"
    if target not in (build_detection_train_loader, name, "detectron2.data.build_detection_train_loader"):
        return None
    if node.get("sampler") is not None or isinstance(dataset, IterableDataset):
        return None
    options = {key: node[key] for key in node if key not in ("dataset", "mapper", "sampler", "collate_fn")}
    in_process = {key: value for key, value in options.items() if key not in WORKER_OPTIONS} | {"num_workers": 0}

    def builder(options: Mapping[str, Any]) -> Callable[[SampleStream, Callable], Iterable]:
        return lambda stream, collate: instantiate(
            {**options, "dataset": stream, "mapper": None, "collate_fn": collate}
        )

    # Where the builder does not group images by shape, workers make the batches.
    grouped = node.get("aspect_ratio_grouping", True)
    chunk = 1 if grouped else max(1, node.total_batch_size // comm.get_world_size())
    items = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
    collate = instantiate(node.get("collate_fn"))
    return ResumableLoader(
        items,
        mix(with_rgb_images(instantiate(node.get("mapper"))), items),
        builder(options),
        build_in_process=builder(in_process) if options.get("num_workers") else None,
        collate=collate,
        chunk=chunk,
        factors=factors,
    )
