"""Write `report.html` in the output folder of a training, after each evaluation.

`DetectionSample` is an evaluator that keeps some detections of each evaluation. `ReportWriter` is a hook that writes a
page with them and the metrics. Neither can stop a training: their errors are logged.
"""

from __future__ import annotations

import io
import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detrex.layers import box_xyxy_to_cxcywh
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from align_detr._platform import describe
from detrkit.analysis import AlignmentTable, LayerPredictions, examine, summarize
from detrkit.analysis.ground_truth import matcher_of, target_of
from detrkit.inference.sources import ERRORS
from detrkit.reports.errors import errors_of_images, write_errors
from detrkit.reports.sheet import best_predictions, class_colors, describe_predictions, draw_pair, plural, select
from detrkit.runtime.files import atomic_write
from detrkit.runtime.program import program

if TYPE_CHECKING:
    from detrkit.reports.training_page import Sample

logger = logging.getLogger("detectron2.training_report")

NAME = "report.html"
IMAGES = 200  # images of each evaluation on which alignment is measured
DRAWN_IMAGES = 6
SIDE = 480  # of a drawn image, in pixels
SCORE = 0.3  # predictions that score more are drawn
FIGURES = (
    "best_in_top_n",
    "best_in_top_2n",
    "spearman",
    "pearson",
    "expected_error",
    "matched_score",
    "matched_iou",
)
VERSIONS = ("numpy", "scipy", "fvcore", "omegaconf", "pycocotools")


@contextmanager
def log_exceptions(task: str) -> Iterator[None]:
    """Log an exception raised inside the block, instead of passing it on."""
    try:
        yield
    except Exception:
        logger.warning("Could not %s; the training goes on", task, exc_info=True)


class DetectionSample(DatasetEvaluator):
    """An evaluator that keeps the detections of about `limit` images, and has no results.

    Attributes:
        detections: `{image_id: Instances}` of the last evaluation, on the main process; None before the first one.
    """

    def __init__(self, limit: int = IMAGES):
        self._limit = -(-limit // comm.get_world_size())
        self._kept: dict[int, Instances] = {}
        self.detections: dict[int, Instances] | None = None

    def reset(self) -> None:
        self._kept = {}

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        with log_exceptions("keep detections for the report"):
            for image, output in zip(inputs, outputs, strict=True):
                if len(self._kept) < self._limit and "instances" in output:
                    self._kept[image["image_id"]] = output["instances"].to("cpu")

    def evaluate(self) -> None:
        gathered = comm.gather(self._kept)
        if comm.is_main_process():
            self.detections = {id_: instances for part in gathered for id_, instances in part.items()}


class ReportWriter(HookBase):
    """A hook of the main process that writes the page after each evaluation, and at the end.

    Register it after the evaluation and before the writers: it records metrics (`alignment/spearman` and others) and an
    image for TensorBoard.

    Args:
        cfg: config of the training, whose `config.yaml` is in the output folder.
        sample: evaluator of the training.
    """

    def __init__(self, cfg: DictConfig, sample: DetectionSample):
        self._cfg = cfg
        self._sample = sample
        self._folder = Path(cfg.train.output_dir)
        self._figures: dict | None = None
        self._errors: dict | None = None
        self._seen = 0
        self._samples: list[Sample] = []
        self._written = False
        self._done = 0
        self._kept: dict[str, str] = {}

    def before_train(self) -> None:
        self._done = self.trainer.start_iter
        if self._done > 0:  # resumed: keep the images and figures of the last evaluation until the next one
            from detrkit.reports.training_page import read_sections

            with log_exceptions(f"read {NAME}"):
                self._kept = read_sections(self._folder / NAME)

    def after_step(self) -> None:
        self._done = self.trainer.iter + 1
        says_stopped = self._kept and not self._written
        if self._sample.detections is not None or says_stopped:
            self._refresh(self._done)

    def after_train(self) -> None:
        if self.trainer.storage.histories():
            complete = self.trainer.iter >= self.trainer.max_iter
            self._refresh(self.trainer.max_iter if complete else self._done, stopped=not complete)

    def _refresh(self, done: int, stopped: bool = False) -> None:
        begin = time.perf_counter()
        detections, self._sample.detections = self._sample.detections, None
        if detections:
            self._kept = {}
            with log_exceptions("read the ground truth of the evaluation"):
                images = self._images(detections)
                with log_exceptions("measure the alignment of scores and boxes"):
                    self._measure(images, detections)
                with log_exceptions("count the errors of the evaluation"):
                    self._count_errors(images, detections)
                with log_exceptions("draw the detections of the evaluation"):
                    self._draw(images, detections, done)
        with log_exceptions(f"write {NAME}"):
            path = self._write(done, stopped)
            level = logging.DEBUG if self._written else logging.INFO
            logger.log(level, "Wrote %s, in %.1f s; each evaluation updates it", path, time.perf_counter() - begin)
            self._written = True

    def _images(self, detections: Mapping[int, Instances]) -> list[dict]:
        """Dataset dicts, with annotations, of the images with detections."""
        return [image for image in self._ground_truth(frozenset(detections)) if "annotations" in image]

    def _ground_truth(self, ids: frozenset[int]) -> list[dict]:
        """Dataset dicts of images; kept, as reading a dataset takes seconds and each evaluation has the same images."""
        if getattr(self, "_known", (None,))[0] != ids:
            images = (image for name in self._datasets for image in DatasetCatalog.get(name))
            self._known = ids, [image for image in images if image["image_id"] in ids]
        return self._known[1]

    @cached_property
    def _datasets(self) -> list[str]:
        names = self._cfg.dataloader.test.dataset.names
        return [names] if isinstance(names, str) else list(names)

    def _measure(self, images: Sequence[dict], detections: Mapping[int, Instances]) -> None:
        matcher = matcher_of(self._cfg)
        tables, boxes, objects = [], 0, 0
        for number, image in enumerate(images):
            predictions, target = detections[image["image_id"]], target_of(image)
            boxes += int((predictions.scores >= SCORE).sum())
            objects += len(target["labels"])
            if len(predictions):
                classes = 1 + max([predictions.pred_classes.max().item(), *target["labels"].tolist()])
                size = number, image["height"], image["width"]
                tables.append(examine(as_queries(predictions, classes), [target], [size], matcher))
        if not sum(map(len, tables)):
            return
        self._figures, self._seen = summarize(AlignmentTable.cat(tables)), len(tables)
        self.trainer.storage.put_scalar("alignment/boxes_per_object", boxes / objects, smoothing_hint=False)
        for name in FIGURES:
            if self._figures[name] is not None:
                self.trainer.storage.put_scalar(f"alignment/{name}", self._figures[name], smoothing_hint=False)

    def _count_errors(self, images: Sequence[dict], detections: Mapping[int, Instances]) -> None:
        names = MetadataCatalog.get(self._datasets[0]).thing_classes
        self._errors = errors_of_images(images, lambda image: detections[image["image_id"]], names)
        write_errors(self._errors, self._folder / ERRORS)
        for name in ("score_threshold", "f1"):
            if self._errors[name] is not None:
                self.trainer.storage.put_scalar(f"errors/{name}", self._errors[name], smoothing_hint=False)

    def _draw(self, images: Sequence[dict], detections: Mapping[int, Instances], done: int) -> None:
        from detrkit.reports.training_page import Sample

        classes = MetadataCatalog.get(self._datasets[0])
        if not hasattr(classes, "thing_colors"):
            classes.thing_colors = class_colors(len(classes.thing_classes))
        samples, rows = [], []
        for image in select(list(images), DRAWN_IMAGES):
            objects = sum(not a.get("iscrowd") for a in image["annotations"])
            predictions = best_predictions(detections[image["image_id"]], objects, SCORE)
            pair = draw_pair(image, predictions, classes, SIDE)
            rows.append(np.concatenate([np.asarray(cell) for cell in pair], axis=1))
            counts = f"{plural(objects, 'object')}, {describe_predictions(predictions, SCORE)}"
            samples.append(Sample(*map(jpeg, pair), f"{Path(image['file_name']).name}: {counts}"))
        self._samples = samples
        self._samples_note = (
            f"After {done} iterations, with ground truth on the left. Predictions are drawn that score {SCORE:g} or "
            "more, and in any case the best ones, as many as the image has objects. A click enlarges an image."
        )
        if rows:
            self.trainer.storage.put_image("ground_truth_and_predictions", np.concatenate(rows).transpose(2, 0, 1))

    def _write(self, done: int, stopped: bool) -> Path:
        from detrkit.reports import training_page as training

        storage = self.trainer.storage
        rows = training.read_metrics(self._folder / "metrics.json")
        page = training.render(
            training.Progress(
                name=self._folder.resolve().name,
                iteration=done,
                max_iter=self.trainer.max_iter,
                rows=with_newest(rows, storage.latest_with_smoothing_hint(20)),
                written=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
                stopped=stopped,
                kept=self._kept,
                config=read_config(self._folder / "config.yaml"),
                samples=self._samples,
                samples_note=self._samples_note if self._samples else "",
                figures=self._figures,
                seen=self._seen,
                errors=self._errors,
                facts=facts(self._cfg),
            )
        )
        path = self._folder / NAME
        with atomic_write(path) as file:  # so that a browser never loads half of it
            file.write(page.encode())
        return path


class TrainingReport(NamedTuple):
    """The report of a training, as `detrkit.training.loop.train` takes it."""

    sample: DetectionSample
    hook: ReportWriter


def build_report(cfg: DictConfig) -> TrainingReport | None:
    """The report of a training; None if `train.report.enabled` is false. A config without the key has a report."""
    if not (cfg.train.get("report") or {}).get("enabled", True):
        return None
    sample = DetectionSample()
    return TrainingReport(sample, ReportWriter(cfg, sample))


def as_queries(predictions: Instances, num_classes: int) -> LayerPredictions:
    """Detections of an image as predictions of one layer: logits (1, 1, N, `num_classes`) and boxes (1, 1, N, 4).

    Detections with the same box are classes of one query. The other classes of a query score just below the lowest
    detection of the image, which is the highest they can score.
    """
    height, width = predictions.image_size
    boxes, query = predictions.pred_boxes.tensor.float().unique(dim=0, return_inverse=True)
    scores = predictions.scores.float().logit(eps=1e-6)
    logits = scores.new_full((len(boxes), num_classes), scores.min().item() - 1e-3)
    logits[query, predictions.pred_classes] = scores
    normalized = box_xyxy_to_cxcywh(boxes) / boxes.new_tensor([width, height, width, height])
    return LayerPredictions(logits[None, None], normalized[None, None])


def jpeg(image: Image.Image) -> bytes:
    """An image as a JPEG file."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return file.getvalue()


def with_newest(rows: list[dict], latest: Mapping[str, tuple[float, int]]) -> list[dict]:
    """The rows of metrics.json, and the metrics recorded since they were written."""
    by_iteration = {row["iteration"]: dict(row) for row in rows}
    written = max(by_iteration, default=-1)
    for name, (value, iteration) in latest.items():
        if iteration >= written:
            by_iteration.setdefault(iteration, {"iteration": iteration}).setdefault(name, value)
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def read_config(path: Path) -> str:
    """The config that a run saved, with references resolved, and Python objects by their names."""
    if not path.is_file():
        return ""
    return OmegaConf.to_yaml(OmegaConf.create(yaml.load(path.read_text(encoding="utf-8"), NamesOnly)), resolve=True)


class NamesOnly(yaml.SafeLoader):
    """A loader of the YAML of `LazyConfig.save` that creates no Python objects."""

    def name(self, kind: str, node: yaml.Node) -> Any:
        if kind == "tuple":
            return self.construct_sequence(node, deep=True)
        if isinstance(node, yaml.ScalarNode):
            return f"{kind.partition(':')[2]}{node.value}"
        mapping = isinstance(node, yaml.MappingNode)
        content = (self.construct_mapping if mapping else self.construct_sequence)(node, deep=True)
        return f"{kind.partition(':')[2]}({content})"


NamesOnly.add_multi_constructor("tag:yaml.org,2002:python/", NamesOnly.name)


def facts(cfg: DictConfig) -> dict[str, str]:
    """Command, device, platform, versions and system of this run."""
    device = torch.device(cfg.train.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    versions = [f"Python {platform.python_version()}", f"PyTorch {torch.__version__}"]
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return {
        "command": shlex.join([*program(), *sys.argv[1:]]),
        "device": f"{device} ({name}), {comm.get_world_size()} process(es)",
        "platform": describe().removeprefix("platform: "),
        "versions": ", ".join(versions),
        "system": platform.platform(),
    }
