"""A page to look at a detector's mistakes: images with objects and detections, to filter and sort in a browser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from tqdm import tqdm

from detrkit.analysis.errors import CORRECT
from detrkit.analysis.ground_truth import target_of
from detrkit.analysis.image_errors import IGNORED, ImageErrors, errors_of_image, lrp_sum
from detrkit.analysis.predictions import criterion_loss
from detrkit.analysis.thresholds import best_threshold, threshold_curve
from detrkit.datasets.annotations import annotations_explained
from detrkit.datasets.mapper import with_rgb_images
from detrkit.datasets.registration import register_coco
from detrkit.inference.sources import find_source, weights_of_run
from detrkit.runtime.scores import checked_score
from detrkit.training.loading import load_detector
from detrkit.training.preflight import match_evaluation

from .errors import check_iou_threshold, detections_of_run, image_boxes
from .explore_page import Shown, write_page
from .sheet import read_detections

GIVEN = "explored_images"  # the name under which given files are registered meanwhile
PAGE = "explore.html"


class Explored(NamedTuple):
    """What was written.

    Attributes:
        path: the page. Small copies of its images lie beside it, in a folder of its name that ends in "_images".
        images: number of images on the page.
        unreadable: file names and reasons of those that could not be read.
    """

    path: Path
    images: int
    unreadable: list[str]


class Source(NamedTuple):
    """Detections with ground truth.

    Attributes:
        title: of the page.
        root: the folder that file names are shown relative to.
        images: dataset dicts.
        found: from a dataset dict to its detections.
        class_names: by class index.
    """

    title: str
    root: str
    images: Sequence[dict]
    found: Callable[[dict], Instances]
    class_names: Sequence[str]


def explore(
    folder: str | os.PathLike | None = None,
    *,
    predictions: str | os.PathLike | None = None,
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    config: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    iou_threshold: float = 0.5,
    min_score: float = 0.05,
    num_images: int | None = None,
    with_loss: bool = False,
) -> Explored:
    """Write a page of images with objects and detections, to filter by class, score, IoU and kind of error.

    Give the folder of a training, or `predictions`, `annotations` and `images`.

    Args:
        folder: of a training. Its last evaluation is shown, on the test images of its config.
        predictions: detections in COCO's results format, in place of the last evaluation.
        annotations: ground truth in COCO's format, without `folder`.
        images: the folder that file names in `annotations` are relative to.
        config: as in `errors_of_run`.
        output: the page; by default explore.html in the folder, or beside the predictions.
        iou_threshold: IoU from which a detection finds an object.
        min_score: detections that score less are left out, so that the page stays small.
        num_images: only so many images, those with the most errors (`lrp_sum`); None for all.
        with_loss: sort by the criterion's loss too. It runs the final weights of the folder on every image.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the files do not belong together, no image can be read, or an argument is out of range.
    """
    _check(iou_threshold, min_score, num_images)
    if (annotations is None) != (images is None) or (annotations is None) == (folder is None):
        raise ValueError("give either the folder of a training, or all of predictions, annotations and images")
    if folder is None and (predictions is None or with_loss):
        missing = "the loss needs the folder of a training" if with_loss else "annotations need predictions"
        raise ValueError(missing)
    path = Path(output or Path(folder or Path(predictions).parent) / PAGE)
    losses = losses_of_run(Path(folder), config) if with_loss else None
    with open_source(folder, predictions, annotations, images, config) as source:
        found = errors_by_image(source, iou_threshold, min_score)
        threshold = best_score_threshold([errors for _, errors in found], min_score)
        if num_images is not None:
            found.sort(key=lambda entry: -lrp_sum(entry[1], threshold, iou_threshold))
        shown = Shown(
            title=source.title,
            root=source.root,
            class_names=source.class_names,
            images=found[:num_images],
            iou_threshold=iou_threshold,
            score_threshold=threshold,
            min_score=min_score,
            losses=losses,
        )
        return Explored(path, len(shown.images), write_page(shown, path))


def _check(iou_threshold: float, min_score: float, num_images: int | None) -> None:
    """Raise ValueError for a number out of its range."""
    check_iou_threshold(iou_threshold)
    checked_score(min_score, "min_score")
    if num_images is not None and num_images < 1:
        raise ValueError(f"the number of images is {num_images}: give a number from 1 up")


@contextmanager
def open_source(
    folder: str | os.PathLike | None,
    predictions: str | os.PathLike | None,
    annotations: str | os.PathLike | None,
    images: str | os.PathLike | None,
    config: str | os.PathLike | None,
) -> Iterator[Source]:
    """Detections with ground truth of a training's folder, or of files, which are registered inside the block."""
    if folder is not None:
        name, dicts, found = detections_of_run(Path(folder), config, predictions)
        title = f"{Path(folder).resolve().name}: mistakes on {name}"
        yield _source(name, title, dicts, found)
        return
    for path in (predictions, annotations):
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
    if not Path(images).is_dir():
        raise FileNotFoundError(f"no such folder of images: {images}")
    register_coco(GIVEN, annotations, images)
    try:
        with annotations_explained(GIVEN):
            dicts, found = read_detections(Path(predictions), GIVEN)
        yield _source(GIVEN, f"{Path(predictions).name}: mistakes on {Path(annotations).name}", dicts, found)
    finally:
        DatasetCatalog.remove(GIVEN)
        MetadataCatalog.remove(GIVEN)


def _source(name: str, title: str, images: Sequence[dict], found: Callable[[dict], Instances]) -> Source:
    annotated = [image for image in images if "annotations" in image]
    if not annotated:
        raise ValueError(f"{name} has no images with annotations to compare detections with")
    metadata = MetadataCatalog.get(name)
    root = metadata.get("image_root") or os.path.dirname(annotated[0]["file_name"])
    return Source(title, os.fspath(root), annotated, found, metadata.thing_classes)


def errors_by_image(source: Source, iou_threshold: float, min_score: float) -> list[tuple[dict, ImageErrors]]:
    """Each dataset dict, with the errors of its detections."""
    return [
        (image, errors_of_image(image_boxes(image, source.found(image)), iou_threshold, min_score))
        for image in tqdm(source.images, "errors", leave=False, disable=None)
    ]


def best_score_threshold(found: Sequence[ImageErrors], lowest: float) -> float:
    """The threshold of the highest F1 over all images, as `summarize_errors` chooses it; `lowest` without one."""
    scores = np.concatenate([errors.scores[errors.kinds != IGNORED] for errors in found])
    kinds = np.concatenate([errors.kinds[errors.kinds != IGNORED] for errors in found])
    objects = sum(int((~errors.is_crowd).sum()) for errors in found)
    best = best_threshold(threshold_curve(scores, kinds == CORRECT, objects))
    return lowest if best is None else best


def losses_of_run(folder: Path, config: str | os.PathLike | None = None) -> dict[str, float]:
    """The criterion's loss of each test image by file name, with the final weights of a training; see `criterion_loss`.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: the config is not one of a DETR detector with one test dataset.
    """
    source = find_source(folder) if config is None else find_source(None, config, weights_of_run(folder))
    cfg = source.cfg
    model = load_detector(cfg, source.weights)
    match_evaluation(cfg, source.weights)
    images = instantiate(cfg.dataloader.test.dataset)
    mapper = with_rgb_images(instantiate(cfg.dataloader.test.mapper))
    return {
        image["file_name"]: criterion_loss(model, mapper(image), target_of(image))
        for image in tqdm(images, "loss", leave=False, disable=None)
    }
