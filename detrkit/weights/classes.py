"""Which class a row of a class head stands for, and moving rows between sets of classes by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from .files import WeightsFile

COCO = "coco_2017_val"
COCO_ROWS = 80
COCO_ROWS_BY_ID = 91  # category ids 0 to 90, eleven of which COCO does not use
UNUSED = ""  # the name of a row that stands for no class; detections of it are never reported


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


def file_classes(file: WeightsFile, rows: int) -> list[str] | None:
    """The names of the classes that a file's class head has `rows` rows for; None if they are not known.

    The file's own word counts first: mmdetection's `meta`, Hugging Face's `config.json`. Otherwise 80 rows are COCO's
    classes, and 91 rows are indexed by COCO's category ids.
    """
    names = _named_in(file)
    if names is not None and len(names) == rows:
        return [UNUSED if name in ("N/A", "") else name for name in names]
    if rows == COCO_ROWS:
        return coco_names()
    return coco_names_by_id() if rows == COCO_ROWS_BY_ID else None


def _named_in(file: WeightsFile) -> list[str] | None:
    meta = file.extra_dict("meta")
    dataset = meta.get("dataset_meta")
    for found in (dataset, meta):
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


class ReportAs:
    """Forward hook for a detector: its detections as classes of another set, by name; others are left out.

    Training and traced graphs, which return no instances, are left alone.

    Args:
        rows: for each of the model's outputs the class that it is reported as; None to leave it out.
    """

    def __init__(self, rows: Sequence[int | None]):
        self._rows = torch.tensor([-1 if row is None else row for row in rows])

    def __call__(self, module: nn.Module, arguments: tuple, results: Any) -> Any:
        if not isinstance(results, list):
            return results
        return [self._renamed(result) for result in results]

    def _renamed(self, result: Mapping[str, Any]) -> dict[str, Any]:
        found = result["instances"]
        classes = self._rows.to(found.pred_classes.device)[found.pred_classes]
        found.pred_classes = classes
        return {**result, "instances": found[classes >= 0]}
