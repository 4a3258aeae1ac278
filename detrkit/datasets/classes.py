"""Names of a detector's classes, and their numbers in the annotation files that it was trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from detrkit.runtime.text import plural

from .annotations import UnmatchedClasses, class_key, shortened
from .registration import BUILT_IN, annotation_file_of, number_classes

logger = logging.getLogger(__name__)

MAX_CLASSES = 100_000
UNUSED = "(unused {})"  # name of an output without a class, such as an unused category id of COCO


@dataclass(frozen=True)
class Classes:
    """Names of the classes of a model's outputs, and their category ids in COCO's format.

    An output named `UNUSED`, with its number, has no class; its detections are not reported.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def named(cls, names: Sequence[str]) -> Classes:
        """Classes with category ids from 1."""
        return cls(tuple(names), tuple(range(1, len(names) + 1)))

    @classmethod
    def numbered(cls, count: int) -> Classes:
        """Classes named "0", "1", …, if their names are not known."""
        return cls.named([str(index) for index in range(count)])

    @classmethod
    def from_plain(cls, content: object, source: str) -> Classes:
        """Classes from the value of `plain`, read from a file.

        Raises:
            ValueError: the content is not such a value.
        """
        is_list = isinstance(content, list) and 0 < len(content) <= MAX_CLASSES
        for entry in content if is_list else [None]:
            number, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
            if type(number) is not int or not isinstance(name, str):
                raise ValueError(f"{source}: its classes are not pairs of number and name")
        return cls(tuple(name for _, name in content), tuple(number for number, _ in content))

    @property
    def used(self) -> list[bool]:
        """For each output, whether it has a class."""
        return [name != UNUSED.format(index) for index, name in enumerate(self.names)]

    def plain(self) -> list[list[int | str]]:
        """Plain data for a file: `[[id, name], …]`."""
        return [[number, name] for number, name in zip(self.ids, self.names, strict=True)]

    def metadata(self) -> Metadata:
        """Metadata of detectron2 with these classes."""
        metadata = Metadata(name="detector")
        metadata.thing_classes = list(self.names)
        metadata.thing_dataset_id_to_contiguous_id = {number: index for index, number in enumerate(self.ids)}
        return metadata

    @property
    def are_numbers(self) -> bool:
        """Whether the names are only numbers, as `numbered` makes them."""
        return self.names == Classes.numbered(len(self.names)).names

    def for_outputs(self, count: int) -> Classes:
        """Extend the classes to the number of a model's outputs; the additional ones are numbered.

        Raises:
            ValueError: there are more names than outputs.
        """
        if len(self.names) > count:
            named = f"{plural(len(self.names), 'class')} ({shortened(self.names)})"
            raise ValueError(f"{named} for a model with {plural(count, 'output')}")
        more = range(len(self.names), count)
        free = max(self.ids, default=0) + 1 - len(self.names)
        return Classes((*self.names, *map(str, more)), (*self.ids, *(index + free for index in more)))


def dataset_names(cfg: DictConfig, split: str) -> list[str]:
    """The datasets that `dataloader.train` or `dataloader.test` of a config names."""
    source = OmegaConf.select(cfg, f"dataloader.{split}.dataset")
    names = source.get("names") if isinstance(source, DictConfig) else None
    return [names] if isinstance(names, str) else list(names or [])


def dataset_of_outputs(cfg: DictConfig) -> tuple[str, Classes] | None:
    """The dataset that the model of a config was most probably trained on, and its classes.

    Returns:
        The first of the training and test data with as many classes as the model has outputs; else the first with
        fewer; None if there are no annotations of such data.
    """
    outputs = OmegaConf.select(cfg, "model.num_classes")
    fewer = None
    for name in (*dataset_names(cfg, "train"), *dataset_names(cfg, "test")):
        classes = classes_of(name)
        if classes is None or (outputs is not None and len(classes.names) > outputs):
            continue
        if outputs is None or len(classes.names) == outputs:
            return name, classes
        fewer = fewer or (name, classes)
    return fewer


def classes_of_dataset(cfg: DictConfig) -> Classes | None:
    """The classes of `dataset_of_outputs`."""
    found = dataset_of_outputs(cfg)
    return found and found[1]


def classes_of(name: str) -> Classes | None:
    """The classes of a dataset in the order of its registration, with the ids of its annotation file.

    Returns:
        None if they are not known.
    """
    metadata = MetadataCatalog.get(name)
    numbers = metadata.get("thing_dataset_id_to_contiguous_id")
    if name in BUILT_IN and numbers:
        return Classes(tuple(metadata.thing_classes), tuple(sorted(numbers, key=numbers.get)))
    found = None
    with suppress(ValueError, OSError):
        found = annotation_file_of(name)
    if found and metadata.get("thing_classes") is None:
        return Classes(found.classes, found.original_ids) if found.classes else None
    if metadata.get("thing_classes") is None:
        with suppress(OSError, KeyError, ValueError):
            DatasetCatalog.get(name)
    if not (labels := metadata.get("thing_classes")):
        return None
    if found:
        ids = dict(zip(map(class_key, found.classes), found.original_ids, strict=True))
        by_output = {index: ids[key] for index, key in enumerate(map(class_key, labels)) if key in ids}
    else:
        by_output = {index: id_ for id_, index in (metadata.get("thing_dataset_id_to_contiguous_id") or {}).items()}
    unused = count(max(by_output.values(), default=0) + 1)
    return Classes(tuple(labels), tuple(by_output[i] if i in by_output else next(unused) for i in range(len(labels))))


def match_classes(cfg: DictConfig, splits: Sequence[str], outputs: Classes, origin: str) -> None:
    """Register the datasets of a config again, with the classes of a model's outputs in their order.

    Classes are matched by name. Changes of an annotation file are logged.

    Args:
        splits: of "train" and "test".
        origin: where the outputs' names come from, for errors.

    Raises:
        ValueError: a dataset has objects of other classes, or another mistake that cannot be corrected.
    """
    for name in (name for split in splits for name in dataset_names(cfg, split)):
        try:
            found = number_classes(name, outputs.names)
        except UnmatchedClasses as error:
            raise ValueError(f"{error} (those of {origin}): use the same names, or leave these objects out") from error
        if found and found.changes:
            logger.info("%s: read from a normalised copy, %s: %s", name, found.path, found.describe_changes())


def classes_in_checkpoint(path: str | Path) -> Classes | None:
    """The classes stored in the checkpoint of a training; None if it has none, or is another file."""
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)  # PyTorch 2.1 maps no Path
        found = content["trainer"]["hooks"]["RunState"]["facts"]["classes"]
    except Exception:  # another or a damaged file; loading its weights raises
        return None
    return Classes.from_plain(found, str(path)) if found else None
