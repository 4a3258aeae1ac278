"""LVIS's average precision of boxes, by the package lvis."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import numpy as np
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from .coco_evaluation import (
    dataset_ids_of,
    gather_predictions,
    instances_to_coco_json,
    local_annotation_file,
    with_dataset_ids,
    write_results,
)
from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)

LVIS_MAX_DETECTIONS = 300  # per image, of all classes together
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def import_lvis() -> ModuleType:
    """Import the package lvis.

    Raises:
        ImportError: it is not installed, or a library that it needs is missing.
    """
    try:
        import lvis
    except ImportError as error:
        raise ImportError(
            f"LVISEvaluator needs the package lvis ({error}): pip install lvis opencv-python-headless"
        ) from error
    return lvis


@contextmanager
def numpy_float() -> Iterator[None]:
    """Provide `numpy.float`, which lvis 0.5.3 uses and numpy 1.24 removed."""
    is_missing = "float" not in vars(np)
    if is_missing:
        np.float = float
    try:
        yield
    finally:
        if is_missing:
            del np.float


class LVISEvaluator(DatasetEvaluator):
    """Average precision of boxes on a dataset registered with an LVIS annotation file.

    A detection of a class that an image was not checked for does not count. AP is given by the frequency of classes in
    training too: rare (APr, at most 10 images), common (APc, at most 100) and frequent (APf).

    Args:
        dataset_name: a registered dataset; its metadata has the path of the annotation file (`json_file`).
        tasks: None or ("bbox",); masks are not supported.
        distributed: gather the predictions of all processes, and evaluate on the main one.
        output_dir: folder for `lvis_instances_results.json`; None writes nothing.
        max_dets_per_image: number of highest-scoring detections per image that count; None: LVIS's 300.

    Raises:
        ImportError: the package lvis is not installed.
        ValueError: another task is asked for, or the dataset has no annotation file.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ):
        if tasks is not None and tuple(tasks) != ("bbox",):
            raise ValueError(f"LVISEvaluator supports only the task 'bbox', not {list(tasks)}")
        self._lvis = import_lvis()
        metadata = MetadataCatalog.get(dataset_name)
        local = local_annotation_file(dataset_name, metadata.get("json_file"), "register_lvis_instances")
        self._distributed, self._output_dir = distributed, output_dir
        self._max_dets = max_dets_per_image or LVIS_MAX_DETECTIONS
        self._truth = self._lvis.LVIS(local)
        self._dataset_ids = dataset_ids_of(metadata, self._truth.cats)
        self._predictions: list[tuple[int, list[dict]]] = []

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the detections of a batch.

        Args:
            inputs: dicts with `image_id`.
            outputs: dicts with `instances`, see `instances_to_coco_json`.
        """
        for image, output in zip(inputs, outputs, strict=True):
            detections = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
            self._predictions.append((image["image_id"], detections))

    def evaluate(self) -> OrderedDict:
        """Compute average precision over all images of the annotation file.

        Returns:
            `{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}}` in percent, on the main
            process; {} on the others, and if the file has no annotations. A metric without ground truth is nan.

        Raises:
            ValueError: a class was predicted that the dataset does not have.
        """
        by_image = gather_predictions(self._predictions, self._distributed)
        if by_image is None:
            return OrderedDict()
        detections = with_dataset_ids(by_image, self._dataset_ids)
        if self._output_dir is not None:
            write_results(detections, self._output_dir, "lvis_instances_results.json")
        if not self._truth.anns:
            logger.info("The dataset has no annotations, so no metrics are computed")
            return OrderedDict()
        return OrderedDict(bbox=self._average_precision(detections))

    def _average_precision(self, detections: list[dict]) -> OrderedDict:
        if not detections:
            logger.warning("There are no detections: AP is 0")
            return OrderedDict.fromkeys(METRICS, 0.0)
        truth = copy.deepcopy(self._truth)  # evaluating changes it
        results = self._lvis.LVISResults(truth, detections, max_dets=self._max_dets)
        evaluation = self._lvis.LVISEval(truth, results, "bbox")
        evaluation.params.max_dets = self._max_dets
        with numpy_float():
            evaluation.run()
        found = evaluation.get_results()
        # The package marks what has no ground truth by -1.
        metrics = OrderedDict((name, found[name] * 100 if found[name] > -1 else float("nan")) for name in METRICS)
        table = tabulate([metrics.values()], metrics.keys(), "pipe", floatfmt=".3f", numalign="left")
        logger.info("Evaluation results for bbox:\n%s", table)
        return metrics
