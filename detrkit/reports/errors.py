"""Errors of a training's detector on its validation images, and the score threshold, from the last evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode, Instances
from tabulate import tabulate

from detrkit.analysis.detection_matching import ImageBoxes
from detrkit.analysis.error_summary import summarize_errors
from detrkit.config.load import load_config_file
from detrkit.datasets.classes import dataset_names
from detrkit.inference.sources import ERRORS
from detrkit.reports.sheet import read_detections
from detrkit.runtime.files import atomic_write

RESULTS = "coco_instances_results.json"


def errors_of_run(
    folder: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    results: str | os.PathLike | None = None,
    iou_threshold: float = 0.5,
    output: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Count a detector's errors by kind, choose its score threshold, and write both as JSON.

    Args:
        folder: of a training. Its last evaluation is used: of the final weights, unless `align-detr eval` ran since.
        config: the config, instead of config.yaml in the folder; needed if that names code of your own.
        results: other detections of the validation images, in COCO's results format.
        iou_threshold: IoU from which a detection finds an object.
        output: the JSON file; by default errors.json in the folder, where `Detector`, `demo` and `export` find the
            threshold.

    Returns:
        What was written; see `detrkit.analysis.error_summary.summarize_errors`.

    Raises:
        FileNotFoundError: config or results are not there.
        ValueError: they do not belong together.
    """
    folder = Path(folder)
    check_iou_threshold(iou_threshold)
    name, images, found = detections_of_run(folder, config, results)
    summary = errors_of_images(images, found, MetadataCatalog.get(name).thing_classes, iou_threshold)
    write_errors(summary, Path(output or folder / ERRORS))
    return summary


def check_iou_threshold(iou_threshold: float) -> None:
    """Raise ValueError for a number that is no IoU threshold."""
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"the IoU threshold is {iou_threshold}: give a number above 0, up to 1")


def detections_of_run(
    folder: Path, config: str | os.PathLike | None = None, results: str | os.PathLike | None = None
) -> tuple[str, list[dict], Callable[[dict], Instances]]:
    """Read the detections of a training's test images; arguments and errors as of `errors_of_run`.

    Returns:
        The dataset's name, its dataset dicts, and a function from one of them to its detections.
    """
    if not config and not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a training: it has no config.yaml")
    results = Path(results or folder / RESULTS)
    if not results.is_file():
        raise FileNotFoundError(f"{results} is not there: `align-detr eval {folder}` writes it")
    config = os.fspath(config or folder / "config.yaml")
    names = dataset_names(load_config_file(config), "test")
    if len(names) != 1:
        raise ValueError(f"{config} has {len(names)} test datasets: errors are counted on one")
    return names[0], *read_detections(results, names[0])


def errors_of_images(
    images: Sequence[dict],
    found: Callable[[dict], Instances],
    class_names: Sequence[str],
    iou_threshold: float = 0.5,
) -> dict[str, Any]:
    """The summary of `summarize_errors` for dataset dicts.

    Args:
        found: from a dataset dict to the detections in its image.
    """
    boxes = [image_boxes(image, found(image)) for image in images if "annotations" in image]
    outputs = max((1 + int(image.classes.max()) for image in boxes if len(image.classes)), default=0)
    names = [*class_names, *map(str, range(len(class_names), outputs))]
    return summarize_errors(boxes, names, iou_threshold)


def image_boxes(image: dict, detections: Instances) -> ImageBoxes:
    """Objects of a dataset dict and detections as arrays; boxes in pixels of the image file."""
    objects = image["annotations"]
    corners = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return ImageBoxes(
        np.array(corners, float).reshape(-1, 4),
        np.array([a["category_id"] for a in objects], int),
        np.array([bool(a.get("iscrowd", 0)) for a in objects], bool),
        detections.pred_boxes.tensor.double().numpy(),
        detections.scores.double().numpy(),
        detections.pred_classes.numpy(),
    )


def write_errors(summary: dict[str, Any], path: Path) -> None:
    """Write a summary as JSON; on an error no file is changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(summary, ensure_ascii=False).encode())


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def errors_table(summary: dict[str, Any]) -> str:
    """Tables of a summary as text: thresholds by class, and errors by kind. AP is in %."""
    ap = f"AP{100 * summary['iou_threshold']:.0f}, %"
    heads = ["class", "objects", ap, "threshold", "precision", "recall", "F1"]
    parts = [*summary["classes"], {**summary, "name": "all"}]
    keys = ("score_threshold", "precision", "recall", "f1")
    rows = [
        [part["name"], part["objects"], _percent(part["AP"]), *(part[key] for key in keys)]
        for part in parts
        if part["objects"]
    ]
    style = {"tablefmt": "github", "missingval": "–"}
    classes = tabulate(rows, heads, floatfmt=".2f", disable_numparse=[0], **style)
    errors = [[name, entry["count"], _percent(entry["AP_cost"])] for name, entry in summary["errors"].items()]
    kinds = tabulate(errors, ["error", "count", f"cost in {ap}"], floatfmt=".2f", **style)
    threshold = summary["score_threshold"]
    where = "no detection is correct" if threshold is None else f"detections that score {threshold:.3g} or more"
    return f"{classes}\n\nErrors at IoU {summary['iou_threshold']:g} ({where}):\n\n{kinds}"
