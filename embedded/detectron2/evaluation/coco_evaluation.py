"""COCO's average precision of boxes, by faster-coco-eval if it is installed, else by pycocotools."""

from __future__ import annotations

import io
import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)

COCO_MAX_DETECTIONS = 100  # COCO's limit per image; pycocotools' summary supports only this value


@contextmanager
def _stdout_to_log(level: int) -> Iterator[None]:
    """Redirect pycocotools' output to the log."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logger.log(level, line)


def local_annotation_file(dataset_name: str, json_file: str | None, register: str) -> str:
    """Return the local path of a dataset's annotation file.

    Args:
        register: the function that registers datasets of this kind, for the error.

    Raises:
        ValueError: the dataset has no annotation file.
        FileNotFoundError: it does not exist.
    """
    if json_file is None:
        raise ValueError(
            f"dataset {dataset_name!r} has no annotation file to evaluate with: register it by "
            f"{register}(name, metadata, json_file, image_root)"
        )
    local = PathManager.get_local_path(json_file)
    if not Path(local).is_file():
        raise FileNotFoundError(f"annotation file of dataset {dataset_name!r} not found: {json_file}")
    return local


def dataset_ids_of(metadata: Metadata, category_ids: Iterable[int]) -> dict[int, int]:
    """Return the category id of each class index.

    Args:
        category_ids: those of the annotation file, for a dataset that is not loaded yet. Loading gives the same order.
    """
    to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    if to_contiguous is None:
        return dict(enumerate(sorted(category_ids)))
    return {index: id_ for id_, index in to_contiguous.items()}


def gather_predictions(
    predictions: list[tuple[int, list[dict]]], distributed: bool
) -> dict[int, list[dict]] | None:
    """Gather the detections of each image from all processes; an image that comes again counts once.

    Returns:
        Detections by image id on the main process, None on the others.
    """
    if distributed:
        comm.synchronize()
        gathered = comm.gather(predictions, dst=0)
        if not comm.is_main_process():
            return None
        predictions = [image for process in gathered for image in process]
    by_image: dict[int, list[dict]] = {}
    for image_id, detections in predictions:
        by_image.setdefault(image_id, detections)
    if len(by_image) < len(predictions):
        logger.info("Dropped %d repeated image(s)", len(predictions) - len(by_image))
    return by_image


def with_dataset_ids(by_image: Mapping[int, list[dict]], dataset_ids: Mapping[int, int]) -> list[dict]:
    """Return all detections, with category ids of the annotation file in place of class indices.

    Raises:
        ValueError: a class was predicted that the dataset does not have.
    """
    detections = [detection for image in by_image.values() for detection in image]
    if unknown := {detection["category_id"] for detection in detections} - dataset_ids.keys():
        raise ValueError(
            f"class {min(unknown)} was predicted, but the dataset has {len(dataset_ids)} classes (0 is the first): the "
            "model was trained for other classes"
        )
    return [{**detection, "category_id": dataset_ids[detection["category_id"]]} for detection in detections]


def write_results(detections: list[dict], folder: str, name: str) -> None:
    """Write detections as JSON into a folder, which is created if it is missing."""
    PathManager.mkdirs(folder)
    path = Path(folder) / name
    with PathManager.open(str(path), "w") as file:
        json.dump(detections, file)
    logger.info("Wrote %d detections to %s", len(detections), path)


def _load_ground_truth(dataset_name: str, json_file: str | None) -> COCO:
    local = local_annotation_file(dataset_name, json_file, "register_coco_instances")
    with open(local, encoding="utf-8") as file:
        try:
            dataset = json.load(file)
        except ValueError as error:
            raise ValueError(f"{json_file} is not COCO annotation JSON: {error}") from error
    if not isinstance(dataset, dict) or not {"images", "categories"} <= dataset.keys():
        raise ValueError(f"{json_file} is not COCO annotation JSON: it has no 'images' and 'categories'")
    if "annotations" in dataset:
        dataset["annotations"] = list(map(_complete, dataset["annotations"], count(1)))
    return _coco_from(dataset)


def _complete(annotation: dict, number: int) -> dict:
    """Return the annotation with a new id and with all keys that the evaluators need.

    To pycocotools id 0 means "unmatched", and equal ids mean the same object.
    """
    area = float(np.prod(annotation["bbox"][2:])) if "area" not in annotation else annotation["area"]
    return {"iscrowd": 0, **annotation, "area": area, "id": number}


def _implementation(fast: bool) -> tuple[type[COCO], type[COCOeval], dict[str, Any]]:
    """Return the classes for annotations and evaluation, and options of the latter; see `use_fast_impl`."""
    if fast:
        with suppress(ImportError):
            import faster_coco_eval

            return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, {"print_function": print}
    return COCO, COCOeval, {}


def _coco_from(dataset: dict, coco_type: type[COCO] = COCO) -> COCO:
    coco = coco_type()
    coco.dataset = dataset
    with _stdout_to_log(logging.DEBUG):
        coco.createIndex()
    return coco


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict]:
    """Convert an image's detections to entries of a COCO results file.

    Args:
        instances: `pred_boxes` (xyxy, pixels of the original image), `scores`, `pred_classes`; any device.
        img_id: id of the image in the annotation file.

    Returns:
        Dicts with image_id, category_id (the class index of `instances`), bbox (xywh) and score.
    """
    boxes = BoxMode.convert(instances.pred_boxes.tensor.float(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    columns = zip(instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist(), strict=True)
    return [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in columns
    ]


class COCOEvaluator(DatasetEvaluator):
    """Average precision of boxes on a dataset registered with a COCO annotation file.

    Args:
        dataset_name: a registered dataset; its metadata has the path of the annotation file (`json_file`).
        tasks: None or ("bbox",); masks and keypoints are not supported.
        distributed: gather the predictions of all processes, and evaluate on the main one. Repeated images (samplers
            may pad to equal lengths) count once.
        output_dir: folder for `coco_instances_results.json`, a COCO results file; None writes nothing.
        max_dets_per_image: number of highest-scoring detections per image and class that count; None: COCO's 100.
        use_fast_impl: use faster-coco-eval if it is installed: pycocotools' results in a tenth of the time.
        kpt_oks_sigmas, allow_cached_coco: unused, kept for configs.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ):
        if tasks is not None and tuple(tasks) != ("bbox",):
            raise ValueError(f"COCOEvaluator supports only the task 'bbox', not {list(tasks)}")
        if max_dets_per_image is not None and max_dets_per_image < 1:
            raise ValueError(f"max_dets_per_image must be at least 1, not {max_dets_per_image}")
        self._use_fast_impl = use_fast_impl
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image or COCO_MAX_DETECTIONS

        metadata = MetadataCatalog.get(dataset_name)
        self._coco = _load_ground_truth(dataset_name, metadata.get("json_file"))
        self._dataset_ids = dataset_ids_of(metadata, self._coco.cats)
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
            detections = instances_to_coco_json(output["instances"], image["image_id"])
            self._predictions.append((image["image_id"], detections))

    def evaluate(self, img_ids: Sequence[int] | None = None) -> OrderedDict:
        """Compute average precision over all images of the annotation file, or over `img_ids`.

        Returns:
            `{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>" …}}` in percent, on the main
            process; {} on the others, and if the file has no annotations. A metric without ground truth (such as no
            large objects) is nan; without detections it is 0.

        Raises:
            ValueError: detections belong to an image or a class that is not in the annotation file.
        """
        by_image = gather_predictions(self._predictions, self._distributed)
        if by_image is None:
            return OrderedDict()
        expected = self._coco.imgs.keys() if img_ids is None else set(img_ids)
        if missing := len(expected - by_image.keys()):
            logger.warning(
                "%d of %d images were not evaluated; their objects count as missed", missing, len(expected)
            )

        if unknown := by_image.keys() - self._coco.imgs.keys():
            raise ValueError(f"the annotation file has no image with id {min(unknown)}, but it was evaluated")
        detections = with_dataset_ids(by_image, self._dataset_ids)
        if self._output_dir is not None:
            write_results(detections, self._output_dir, "coco_instances_results.json")
        if "annotations" not in self._coco.dataset:
            logger.info("The dataset has no annotations, so no metrics are computed")
            return OrderedDict()
        if not detections:
            logger.warning("There are no detections: AP is 0, or nan without ground truth")
        return OrderedDict(bbox=self._average_precision(detections, img_ids))

    def _average_precision(self, detections: list[dict], img_ids: Sequence[int] | None) -> OrderedDict:
        coco_type, evaluation_type, options = _implementation(self._use_fast_impl)
        annotated = self._coco if coco_type is COCO else _coco_from(self._coco.dataset, coco_type)
        with _stdout_to_log(logging.DEBUG):
            # `loadRes` reads the first detection, so an empty list needs an empty COCO object.
            detected = annotated.loadRes(detections) if detections else _coco_from({"annotations": []}, coco_type)
        evaluation = evaluation_type(annotated, detected, "bbox", **options)
        evaluation.params.maxDets = [1, min(10, self._max_dets), self._max_dets]
        if img_ids is not None:
            evaluation.params.imgIds = list(img_ids)
        with _stdout_to_log(logging.DEBUG):
            evaluation.evaluate()
            evaluation.accumulate()
        if self._max_dets == COCO_MAX_DETECTIONS:
            with _stdout_to_log(logging.INFO):
                evaluation.summarize()

        metrics = _main_metrics(evaluation)
        logger.info("Evaluation results for bbox:\n%s", _metric_row(metrics))
        by_class = _class_metrics(evaluation)
        logger.info("Per-category bbox AP:\n%s", _class_table(by_class))
        metrics.update((f"AP-{name}", value) for name, value in by_class.items())
        return metrics


def _mean_percent(precision: np.ndarray) -> float:
    """Return the mean over entries with ground truth (pycocotools marks others by -1); nan without such entries."""
    valid = precision[precision > -1]
    return float(valid.mean() * 100) if valid.size else float("nan")


def _main_metrics(evaluation: COCOeval) -> OrderedDict:
    # IoU threshold × recall × class × area range × limit of detections; the last limit is `max_dets_per_image`
    precision = evaluation.eval["precision"][..., -1]
    thresholds = evaluation.params.iouThrs
    areas = {label: index for index, label in enumerate(evaluation.params.areaRngLbl)}
    return OrderedDict(
        AP=_mean_percent(precision[..., areas["all"]]),
        AP50=_mean_percent(precision[np.isclose(thresholds, 0.5)][..., areas["all"]]),
        AP75=_mean_percent(precision[np.isclose(thresholds, 0.75)][..., areas["all"]]),
        APs=_mean_percent(precision[..., areas["small"]]),
        APm=_mean_percent(precision[..., areas["medium"]]),
        APl=_mean_percent(precision[..., areas["large"]]),
    )


def _class_metrics(evaluation: COCOeval) -> dict[str, float]:
    precision = evaluation.eval["precision"][:, :, :, evaluation.params.areaRngLbl.index("all"), -1]
    names = [category["name"] for category in evaluation.cocoGt.loadCats(evaluation.params.catIds)]
    return {name: _mean_percent(precision[:, :, index]) for index, name in enumerate(names)}


def _metric_row(metrics: Mapping[str, float]) -> str:
    return tabulate([metrics.values()], metrics.keys(), "pipe", floatfmt=".3f", numalign="left")


def _class_table(by_class: Mapping[str, float], pairs: int = 3) -> str:
    """Return a table with `pairs` columns of `category | AP`."""
    cells = [cell for item in by_class.items() for cell in item]
    width = 2 * min(pairs, len(by_class))
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    return tabulate(rows, ["category", "AP"] * (width // 2), "pipe", floatfmt=".3f", numalign="left")
