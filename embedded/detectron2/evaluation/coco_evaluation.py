"""COCO's average precision of boxes, by faster-coco-eval if it is installed, else by pycocotools."""

from __future__ import annotations

import io
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
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


def _load_ground_truth(dataset_name: str, json_file: str | None) -> COCO:
    if json_file is None:
        raise ValueError(
            f"dataset {dataset_name!r} has no annotation file to evaluate with: register it by "
            "register_coco_instances(name, metadata, json_file, image_root)"
        )
    local = PathManager.get_local_path(json_file)
    if not Path(local).is_file():
        raise FileNotFoundError(f"annotation file of dataset {dataset_name!r} not found: {json_file}")
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
        self._coco = _load_ground_truth(dataset_name, getattr(metadata, "json_file", None))
        to_contiguous = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
        if to_contiguous is None:  # the dataset is not loaded yet; loading will give the same order
            to_contiguous = {id: index for index, id in enumerate(sorted(self._coco.cats))}
        self._dataset_ids = {index: id for id, index in to_contiguous.items()}
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
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            predictions = [image for process in gathered for image in process]

        by_image = {}
        for image_id, detections in predictions:
            by_image.setdefault(image_id, detections)
        if len(by_image) < len(predictions):
            logger.info("Dropped %d repeated image(s)", len(predictions) - len(by_image))
        expected = self._coco.imgs.keys() if img_ids is None else set(img_ids)
        if missing := len(expected - by_image.keys()):
            logger.warning(
                "%d of %d images were not evaluated; their objects count as missed", missing, len(expected)
            )

        detections = self._to_dataset_ids(by_image)
        if self._output_dir is not None:
            self._write(detections)
        if "annotations" not in self._coco.dataset:
            logger.info("The dataset has no annotations, so no metrics are computed")
            return OrderedDict()
        if not detections:
            logger.warning("There are no detections: AP is 0, or nan without ground truth")
        return OrderedDict(bbox=self._average_precision(detections, img_ids))

    def _to_dataset_ids(self, by_image: dict[int, list[dict]]) -> list[dict]:
        if unknown := by_image.keys() - self._coco.imgs.keys():
            raise ValueError(f"the annotation file has no image with id {min(unknown)}, but it was evaluated")
        detections = []
        for image in by_image.values():
            for detection in image:
                index = detection["category_id"]
                if index not in self._dataset_ids:
                    raise ValueError(
                        f"class {index} was predicted, but the dataset has {len(self._dataset_ids)} classes "
                        "(0 is the first): the model was trained for other classes"
                    )
                detections.append({**detection, "category_id": self._dataset_ids[index]})
        return detections

    def _write(self, detections: list[dict]) -> None:
        PathManager.mkdirs(self._output_dir)
        path = Path(self._output_dir) / "coco_instances_results.json"
        with PathManager.open(str(path), "w") as file:
            json.dump(detections, file)
        logger.info("Wrote %d detections to %s", len(detections), path)

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
