"""A training's images as a stream in which the position alone determines everything.

Position p is image number p % size of the shuffle number p // size, and its augmentation is drawn from generators
seeded with p. So a process that knows the positions it has not trained on yet can go on exactly, with any number of
data workers, whatever these had read ahead.
"""

from __future__ import annotations

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

from .data_workers import is_worker_death, leave_signals_to_parent, next_batch
from .randomness import random_states_kept, seed_cpu

POSITION = "stream_position"
SHUFFLE, AUGMENTATION = 0, 1  # what a seed is for
WORKER_OPTIONS = ("multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout")  # of DataLoader


class SampleStream(IterableDataset):
    """The training examples at `waiting`, then at `front`, `front + step`, … without end.

    Args:
        dataset: from a number to what `mapper` takes.
        mapper: makes a dict, the training example, or None for what cannot be used: then another image takes its
            place. Its `stream_position` will be the position.
        seed: of shuffles and augmentation.
        chunk: how many neighbours in the stream one data worker reads: what it makes a batch of, else 1. So the
            examples come in the stream's order, however many workers there are.
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
    ):
        self._dataset, self._mapper, self._seed = dataset, mapper, seed
        self._step, self._chunk = step, chunk
        self.start_from(waiting, front)
        self._order = lru_cache(2)(self._shuffled)

    def start_from(self, waiting: Sequence[int], front: int) -> None:
        """Set the positions that the next iteration starts with."""
        self._waiting, self._front = tuple(waiting), front

    def __iter__(self) -> Iterator[dict]:
        positions: Iterable[int] = chain(self._waiting, count(self._front, self._step))
        worker = get_worker_info()
        if worker is not None:
            leave_signals_to_parent()
            positions = _every_nth_chunk(positions, worker.id, worker.num_workers, self._chunk)
        return map(self.example, positions)

    def example(self, position: int) -> dict:
        """The one at a position; the same on every call. Leaves the CPU's generators seeded with it."""
        epoch, place = divmod(position, len(self._dataset))
        seed_cpu(self._seed, position, AUGMENTATION)
        example = self._map(self._order(epoch)[place])
        while example is None:
            example = self._map(int(torch.randint(len(self._dataset), ())))
        if not isinstance(example, dict):
            raise ValueError(f"the mapper of dataloader.train made a {type(example).__name__}, not a dict")
        return {**example, POSITION: position}

    def _map(self, number: int) -> dict | None:
        item = self._dataset[number]
        try:
            return self._mapper(item)
        except (Image.DecompressionBombError, SyntaxError) as error:  # the other of which is of broken PNGs
            name = item.get("file_name") if isinstance(item, Mapping) else number
            raise OSError(f"cannot read image file {name}: {error}") from error

    def _shuffled(self, epoch: int) -> list[int]:
        with random_states_kept():
            seed_cpu(self._seed, epoch, SHUFFLE)
            return torch.randperm(len(self._dataset)).tolist()

    def __getstate__(self) -> dict:  # a cache cannot be pickled, as workers that are not forked need it
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
    """A collate function that gives the positions of a batch's examples beside the batch."""

    def __init__(self, collate: Callable[[list], Any] | None):
        self._collate = collate

    def __call__(self, batch: list[dict]) -> tuple[list[int], Any]:
        positions = [example.pop(POSITION) for example in batch]
        return positions, batch if self._collate is None else self._collate(batch)


class ResumableLoader:
    """An endless stream of batches that knows where it is.

    Iterating it draws nothing from the process's generators. If a data worker dies, this process reads the same batches
    itself from there on.

    Args:
        dataset, mapper: as in `SampleStream`; None: the dataset's items are examples already.
        build: makes an iterable of batches from a `SampleStream` and a collate function.
        build_in_process: the same without data workers. None: the death of a worker is an error.
        collate: makes a batch of a list of examples; None: the list is the batch.
        chunk: as in `SampleStream`.

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
    ):
        self._dataset, self._mapper = dataset, mapper or dict
        self._build, self._build_in_process = build, build_in_process
        self._collate, self._chunk = _Tagged(collate), chunk
        self._seed = comm.shared_random_seed()
        self._step = comm.get_world_size()
        self._front = comm.get_rank()
        self._waiting: list[int] = []
        self.worker_death = ""

    def __iter__(self) -> Iterator[Any]:
        with random_states_kept():
            batches = iter(self._build(self._stream(), self._collate))
            # Built now, as building is for all processes of a run together, and a worker dies in one of them.
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
            self._hand_over(positions)
            yield batch

    def _stream(self) -> SampleStream:
        """The examples that were not handed over yet."""
        return SampleStream(
            self._dataset,
            self._mapper,
            seed=self._seed,
            waiting=self._waiting,
            front=self._front,
            step=self._step,
            chunk=self._chunk,
        )

    def _hand_over(self, positions: list[int]) -> None:
        # Examples come in the stream's order, so what lies before the newest is in a batch, or waits for one of its
        # shape to be full.
        newest = max(positions)
        while self._front <= newest:
            self._waiting.append(self._front)
            self._front += self._step
        given = set(positions)
        self._waiting = [position for position in self._waiting if position not in given]

    def state_dict(self) -> dict[str, Any]:
        """Where this process is, behind the batch that it was given last."""
        return {
            "seed": self._seed,
            "size": len(self._dataset),
            "front": self._front,
            "waiting": list(self._waiting),
        }

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]]) -> str:
        """Go on where the processes of an earlier run were, as many as `states`. Before the first batch.

        With as many processes as then, each goes on exactly. Otherwise what none of them has trained on yet is dealt
        out anew: every image comes once per epoch still.

        Returns:
            What could not be kept, for the person who resumes; empty if nothing was lost.
        """
        size = len(self._dataset)
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


def resumable_loader(node: DictConfig, dataset: Any) -> ResumableLoader | None:
    """The loader that a config describes, as one that can resume.

    Args:
        node: a call of detectron2's `build_detection_train_loader`.
        dataset: what its `dataset` was instantiated to.

    Returns:
        None if the config's data cannot be resumed in this way: another loader, a sampler of its own, or a dataset that
        is a stream itself.
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
        with_rgb_images(instantiate(node.get("mapper"))),
        builder(options),
        build_in_process=builder(in_process) if options.get("num_workers") else None,
        collate=collate,
        chunk=chunk,
    )
