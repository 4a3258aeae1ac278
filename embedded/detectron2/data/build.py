"""Data loaders for registered datasets."""

import logging
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from typing import Any

import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, trivial_batch_collator
from .samplers import InferenceSampler, TrainingSampler

__all__ = ["build_detection_test_loader", "build_detection_train_loader", "get_detection_dataset_dicts"]


def get_detection_dataset_dicts(
    names: str | list[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
) -> list[dict]:
    """Return the images of registered datasets, one dict each (see `load_coco_json`).

    Args:
        names: dataset names.
        filter_empty: leave out images without objects (crowds do not count).
        min_keypoints: only 0 is supported; keypoints need a real detectron2.
        proposal_files: only None is supported; precomputed proposals need a real detectron2.
        check_consistency: require the same classes in all datasets.

    Raises:
        ValueError: an unknown name, datasets with different classes, or no images left.
    """
    if min_keypoints or proposal_files:
        raise ValueError(
            "keypoints and precomputed proposals need a real detectron2: set min_keypoints=0 and proposal_files=None"
        )
    names = [names] if isinstance(names, str) else list(names)
    loaded = {name: DatasetCatalog.get(name) for name in names}

    if check_consistency:
        classes = {tuple(MetadataCatalog.get(name).get("thing_classes", ())) for name in names}
        if len(classes) > 1:
            raise ValueError(f"the datasets {', '.join(names)} do not have the same classes")

    kept = []
    for name, images in loaded.items():
        used = [image for image in images if _has_objects(image)] if filter_empty else images
        logging.getLogger(__name__).info(f"dataset {name}: {len(used)} of its {len(images)} images are used")
        kept += used
    if not kept:
        what = "images with objects" if filter_empty else "images"
        raise ValueError(f"there are no {what} in the datasets [{', '.join(names)}]")
    return kept


def _has_objects(image: dict) -> bool:
    return any(not annotation.get("iscrowd", 0) for annotation in image.get("annotations", ()))


def build_detection_train_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], dict] | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> Iterable[Any]:
    """Build an endless loader of training batches.

    The random state of the process (`seed_all_rng`) determines order and augmentation. Augmentation differs between
    workers, processes and passes over the data.

    Args:
        dataset: list of dicts, or a dataset of dicts (map-style, or an endless iterable).
        mapper: converts an image's dict to a training example, in the workers; None: the dict is used unchanged.
        sampler: yields positions in the dataset; None: TrainingSampler. Iterable datasets have no sampler.
        total_batch_size: images per batch over all processes.
        aspect_ratio_grouping: put wide and high images in separate batches.
        num_workers: worker processes per training process; 0 loads in the training process.
        collate_fn: converts a list of examples to a batch; None: the list is the batch.
        kwargs: passed on to DataLoader, e.g. prefetch_factor, persistent_workers, pin_memory.

    Raises:
        ValueError: `total_batch_size` is not a multiple of the number of processes, or the dataset is empty.
    """
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size:
        raise ValueError(f"total_batch_size={total_batch_size} is not a positive multiple of {world_size} processes")
    batch_size = total_batch_size // world_size

    dataset = _as_dataset(dataset, mapper)
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable dataset has its own order: set sampler=None")
    elif sampler is None:
        sampler = TrainingSampler(len(dataset))
    collate_fn = collate_fn or trivial_batch_collator
    # The loader takes new seeds for the workers from this generator in each pass.
    generator = torch.Generator().manual_seed(comm.shared_random_seed() + comm.get_rank())
    if num_workers > 0:
        # Prefetch two batches. With grouping, the loader's items are single images.
        items = batch_size if aspect_ratio_grouping else 1
        kwargs.setdefault("prefetch_factor", max(2, ceil(2 * items / num_workers)))
    kwargs = {"generator": generator, "pin_memory": torch.cuda.is_available(), **kwargs}

    if not aspect_ratio_grouping:
        return _Loader(
            dataset,
            sampler=sampler,
            batch_size=batch_size,
            drop_last=True,
            num_workers=num_workers,
            collate_fn=collate_fn,
            **kwargs,
        )
    images = _Loader(dataset, sampler=sampler, batch_size=None, num_workers=num_workers, collate_fn=_identity, **kwargs)
    batches = AspectRatioGroupedDataset(images, batch_size)
    return batches if collate_fn is trivial_batch_collator else _Collated(batches, collate_fn)


def build_detection_test_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any],
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """Build a loader for one pass over this process's share of the images, in order.

    For the arguments see `build_detection_train_loader`; the default sampler is InferenceSampler.
    """
    dataset = _as_dataset(dataset, mapper)
    return _Loader(
        dataset,
        sampler=InferenceSampler(len(dataset)) if sampler is None else sampler,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
        pin_memory=torch.cuda.is_available(),
    )


def _as_dataset(dataset: list[dict] | Dataset, mapper: Callable[[dict], Any] | None) -> Dataset:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset)
    if mapper is not None and isinstance(dataset, IterableDataset):
        raise ValueError("mapping an iterable dataset needs a real detectron2: set mapper=None")
    return dataset if mapper is None else MapDataset(dataset, mapper)


def _identity(item: Any) -> Any:
    return item


class _Collated:
    """Batches with `collate_fn` applied."""

    def __init__(self, batches: Iterable[list], collate_fn: Callable[[list], Any]):
        self.batches = batches
        self.collate_fn = collate_fn

    def __iter__(self) -> Iterator[Any]:
        return map(self.collate_fn, self.batches)


class _Loader(DataLoader):
    """DataLoader that reports errors of files in workers as one line."""

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        except (OSError, ValueError) as err:
            # Workers send their traceback as the message; its last line is `module.Error: message`.
            if not str(err).startswith("Caught "):
                raise
            message = str(err).rstrip().splitlines()[-1].partition(": ")[2]
            # The traceback keeps the loader's iterator in a reference cycle. Its garbage collection would wait 5
            # seconds for each worker.
            raise type(err)(message) from err.with_traceback(None)
