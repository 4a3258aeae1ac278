"""Files of detections in COCO's results format."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from detrkit.runtime.files import atomic_write

from .annotations import original_ids, read_annotations


def with_ids_of_copy(
    detections: Mapping[Hashable, list[dict[str, Any]]], annotation_file: str | os.PathLike
) -> Mapping[Hashable, list[dict[str, Any]]]:
    """Replace the ids of the user's annotation file in detections by those of a normalised copy.

    Args:
        detections: with `category_id`, by image id. Ids that the user's file does not have do not change.
        annotation_file: the copy, or the user's file if it needed no copy.
    """
    content = read_annotations(annotation_file)
    images, categories = original_ids(content, "images"), original_ids(content, "categories")
    image_ids = {original: id_ for id_, original in (images or {}).items()}
    category_ids = {original: id_ for id_, original in (categories or {}).items()}
    return {
        image_ids.get(image_id, image_id): [
            {**found, "category_id": category_ids.get(found["category_id"], found["category_id"])} for found in entries
        ]
        for image_id, entries in detections.items()
    }


def restore_original_ids(results_file: str | os.PathLike, annotation_file: str | os.PathLike) -> int:
    """Write the ids of the user's annotation file into a results file, after an evaluation with a normalised copy.

    Detections of classes that the user's file does not have are left out.

    Args:
        results_file: replaced in one step.
        annotation_file: the copy.

    Returns:
        Number of detections left out.
    """
    content = read_annotations(annotation_file)
    images, categories = original_ids(content, "images"), original_ids(content, "categories")
    if images is None and categories is None:
        return 0
    results_file = Path(results_file)
    detections = json.loads(results_file.read_bytes())
    kept = [d for d in detections if categories is None or d["category_id"] in categories]
    for detection in kept:
        if images is not None:
            detection["image_id"] = images[detection["image_id"]]
        if categories is not None:
            detection["category_id"] = categories[detection["category_id"]]
    with atomic_write(results_file) as file:
        file.write(json.dumps(kept).encode())
    return len(detections) - len(kept)
