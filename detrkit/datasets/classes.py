"""Names of a detector's classes, and their numbers in the annotation files that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Classes:
    """By a model's output: the class's name, and its category id in COCO's format."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def named(cls, names: Sequence[str]) -> Classes:
        """Categories count from 1."""
        return cls(tuple(names), tuple(range(1, len(names) + 1)))

    @classmethod
    def numbered(cls, count: int) -> Classes:
        """For classes whose names are not known: "0", "1", ..."""
        return cls.named([str(index) for index in range(count)])

    @classmethod
    def from_plain(cls, content: object, source: str) -> Classes:
        """What `plain` gave, from a file that may hold anything.

        Raises:
            ValueError: it is something else.
        """
        is_list = isinstance(content, list) and 0 < len(content) <= MAX_CLASSES
        for entry in content if is_list else [None]:
            number, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
            if type(number) is not int or not isinstance(name, str):
                raise ValueError(f"{source}: its classes are not pairs of number and name")
        return cls(tuple(name for _, name in content), tuple(number for number, _ in content))

    def plain(self) -> list[list[int | str]]:
        """For a file: `[[id, name], ...]`."""
        return [[number, name] for number, name in zip(self.ids, self.names, strict=True)]

    def metadata(self) -> Metadata:
        """As detectron2 knows the classes of a dataset."""
        metadata = Metadata(name="detector")
        metadata.thing_classes = list(self.names)
        metadata.thing_dataset_id_to_contiguous_id = {number: index for index, number in enumerate(self.ids)}
        return metadata

    def for_outputs(self, count: int) -> Classes:
        """As many as a model has outputs: a dataset may have fewer classes; the others are numbered."""
        more = range(len(self.names), count)
        free = max(self.ids, default=0) + 1 - len(self.names)
        return Classes(
            (*self.names, *map(str, more))[:count], (*self.ids, *(index + free for index in more))[:count]
        )


def classes_of_dataset(cfg: DictConfig) -> Classes | None:
    """The classes of a config's test data, or of its training data. Annotations are read if nothing is known of them as
    yet; None if they are not here."""
    for split in ("test", "train"):
        source = OmegaConf.select(cfg, f"dataloader.{split}.dataset")
        names = source.get("names") if isinstance(source, DictConfig) else None
        if not names:
            continue
        name = names if isinstance(names, str) else names[0]
        metadata = MetadataCatalog.get(name)
        if metadata.get("thing_classes") is None:
            with suppress(OSError, KeyError, ValueError):
                DatasetCatalog.get(name)
        if labels := metadata.get("thing_classes"):
            to_output = metadata.get("thing_dataset_id_to_contiguous_id") or {}
            ids = {index: number for number, index in to_output.items()}
            return Classes(tuple(labels), tuple(ids.get(index, index + 1) for index in range(len(labels))))
    return None


def classes_in_checkpoint(path: str | Path) -> Classes | None:
    """The classes that a training left in a checkpoint; None if there are none, or it is another file."""
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)  # PyTorch 2.1 maps no Path
        found = content["trainer"]["hooks"]["RunState"]["facts"]["classes"]
    except Exception:  # not a checkpoint of a training, or damaged; who loads its weights will say so
        return None
    return Classes.from_plain(found, str(path)) if found else None
