"""Which class a row of a class head stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from detectron2.data import MetadataCatalog
from torch import Tensor

from detrkit.datasets.classes import UNUSED, Classes

from .files import WeightsFile

COCO = "coco_2017_val"
COCO_ROWS = 80
CLASS_AGNOSTIC = "transformer.pos_trans.weight"  # of detectors whose encoder tells objects from background alone
COCO_ROWS_BY_ID = 91  # category ids 0 to 90, eleven of which COCO does not use


def coco_names() -> list[str]:
    """COCO's 80 classes, in the order of their category ids."""
    return list(MetadataCatalog.get(COCO).thing_classes)


def coco_ids() -> list[int]:
    """The category ids of `coco_names`."""
    return list(MetadataCatalog.get(COCO).thing_dataset_id_to_contiguous_id)


def coco_names_by_id() -> list[str]:
    """A name for each of the 91 category ids from 0; `UNUSED` for those that COCO does not use."""
    names = dict(zip(coco_ids(), coco_names(), strict=True))
    return [names.get(number, UNUSED.format(number)) for number in range(COCO_ROWS_BY_ID)]


def named_classes(file: WeightsFile, rows: int) -> list[str] | None:
    """The names that a file gives to the `rows` rows of its class head; None if it names none, or another number.

    mmdetection has them in `meta`, Hugging Face in the `config.json` beside the file."""
    names = _names_in(file)
    if names is None or len(names) != rows:
        return None
    return [UNUSED.format(row) if name in ("N/A", "") else name for row, name in enumerate(names)]


def assumed_classes(rows: int) -> list[str] | None:
    """The classes of a published file that names none: 80 rows are COCO's classes in order, and 91 are indexed by
    COCO's category ids. None for other numbers."""
    if rows == COCO_ROWS:
        return coco_names()
    return coco_names_by_id() if rows == COCO_ROWS_BY_ID else None


def _names_in(file: WeightsFile) -> list[str] | None:
    meta = file.extra_dict("meta")
    for found in (meta.get("dataset_meta"), meta):
        for key in ("classes", "CLASSES"):
            names = found.get(key) if isinstance(found, dict) else None
            if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
                return list(names)
    labels = file.extra_dict("config").get("id2label")
    if isinstance(labels, dict) and all(isinstance(name, str) for name in labels.values()):
        named = [labels.get(str(number)) for number in range(len(labels))]
        is_default = all(name == f"LABEL_{number}" for number, name in enumerate(named))
        return None if None in named or is_default else named
    return None


def as_classes(names: Sequence[str]) -> Classes:
    """Names of class rows with category ids: COCO's if they are COCO's, the numbers of 91 rows, else 1, 2, …"""
    if list(names) == coco_names():
        return Classes(tuple(names), tuple(coco_ids()))
    if list(names) == coco_names_by_id():
        return Classes(tuple(names), tuple(range(COCO_ROWS_BY_ID)))
    return Classes.named(names)


def encoder_objectness(state: Mapping[str, Tensor]) -> list[str]:
    """The tensors of the class head that chooses the encoder's proposals by its row 0, whatever the classes are.

    Deformable DETR's and H-Deformable-DETR's do; in DINO the best class counts, and there are none.
    """
    if CLASS_AGNOSTIC not in state:
        return []
    heads = [re.fullmatch(r"(?:transformer\.decoder\.)?class_embed\.(\d+)\..+", name) for name in state]
    numbers = [int(found[1]) for found in heads if found]
    return [found[0] for found in heads if found and int(found[1]) == max(numbers)]
