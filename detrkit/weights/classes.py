"""Which class a row of a class head stands for, and moving rows between sets of classes by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from torch import Tensor, nn

from detrkit.datasets.classes import UNUSED, Classes

from .files import WeightsFile

COCO = "coco_2017_val"
COCO_ROWS = 80
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
    return [names.get(number, UNUSED) for number in range(COCO_ROWS_BY_ID)]


def named_classes(file: WeightsFile, rows: int) -> list[str] | None:
    """The names that a file gives to the `rows` rows of its class head; None if it names none, or another number.

    mmdetection has them in `meta`, Hugging Face in the `config.json` beside the file."""
    names = _names_in(file)
    if names is None or len(names) != rows:
        return None
    return [UNUSED if name in ("N/A", "") else name for name in names]


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


def class_rows(ours: Sequence[str], theirs: Sequence[str]) -> list[int | None]:
    """For each of our classes the row of theirs that has its name, whatever its case; None if there is none."""
    row_of = {name.casefold(): row for row, name in reversed(list(enumerate(theirs))) if name != UNUSED}
    return [row_of.get(name.casefold()) for name in ours]


def pick_rows(theirs: Tensor, initial: Tensor, rows: Sequence[int | None]) -> Tensor:
    """A class head's weight or bias with `rows` of `theirs`, and of `initial` where a row is None.

    Args:
        theirs: (their classes, …).
        initial: (our classes, …), the values of a model that was not trained.
    """
    known = [(row, source) for row, source in enumerate(rows) if source is not None]
    result = initial.detach().clone()
    if known:
        target, source = torch.tensor(known, device=theirs.device).unbind(1)
        result[target.to(result.device)] = theirs[source].to(result)
    return result


def match_classes(ours: Sequence[str], theirs: Sequence[str] | None, assumed: bool = False) -> list[int | None] | None:
    """For each of our classes the row of theirs to use; None: all rows as they are.

    Args:
        theirs: None: not known.
        assumed: they were guessed from their number. The guess is dropped where there are as many of ours, and not all
            of these are among them: a file of other classes.
    """
    if theirs is None or list(ours) == list(theirs):
        return None
    rows = class_rows(ours, theirs)
    return None if assumed and len(ours) == len(theirs) and None in rows else rows


def report_as(model: nn.Module, rows: Sequence[int | None], outputs: int) -> None:
    """Make a detector report its detections as other classes; those without a counterpart are left out.

    Args:
        model: its `inference(logits, boxes, image_sizes)` gives Instances per image; it is replaced.
        rows: for each class to report, the number of the model's output.
        outputs: number of the model's outputs.
    """
    number_of = torch.full((outputs,), -1)
    for number, row in enumerate(rows):
        if row is not None:
            number_of[row] = number
    inference = model.inference

    def renamed(*arguments: Any, **options: Any) -> list[Instances]:
        results = []
        for found in inference(*arguments, **options):
            found.pred_classes = number_of.to(found.pred_classes.device)[found.pred_classes]
            results.append(found[found.pred_classes >= 0])
        return results

    model.inference = renamed
