"""Evaluate a model on the test data. A failure in one process is reported in all processes of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from detrex.modeling import ema
from omegaconf import DictConfig
from torch import nn

from detrkit.config.test_augmentation import tta_options
from detrkit.datasets.annotations import annotations_explained
from detrkit.datasets.classes import dataset_names
from detrkit.datasets.registration import annotation_file_of
from detrkit.datasets.results import restore_original_ids
from detrkit.runtime.logs import terminal_quiet
from detrkit.runtime.numpy_float import numpy_float
from detrkit.runtime.soft_nms import checked_threshold, soft_nms
from detrkit.runtime.threads import ThreadChooser

from .builders import autocast_of, build_loader, build_model
from .loading import WholeModelCheckpointer
from .preflight import match_evaluation
from .test_augmentation import with_original_images, with_tta

logger = logging.getLogger("detectron2.evaluation")

WORTH_MEASURING = 100  # batches; choosing the number of threads takes about ten


def build_evaluation(
    cfg: DictConfig,
    model: nn.Module,
    watchers: Sequence[DatasetEvaluator] = (),
    threads: ThreadChooser | None = None,
) -> Callable[[], Mapping[str, Any]]:
    """Return a function that evaluates `model` on the test data, and returns `{task: metrics}`.

    With a moving average, the results are those of the averaged weights. Those of the plain weights are added as
    `<task>_without_ema`, unless `train.model_ema.use_ema_weights_for_eval_only`.

    Args:
        watchers: further evaluators that receive the detections.
        threads: chooses the number of CPU threads on the first images; None keeps the number.
    """
    if "evaluator" not in cfg.dataloader:
        return dict
    options = tta_options(cfg)
    loader = build_loader(with_original_images(cfg) if options else cfg, "test")
    names = dataset_names(cfg, "test")
    threshold = checked_threshold(cfg.train.get("soft_nms"), "train.soft_nms")
    with annotations_explained(names):
        evaluators = [instantiate(cfg.dataloader.evaluator), *watchers]

    def run(weights: str) -> tuple[dict[str, Any], Exception | None]:
        logger.debug("Evaluating the %s weights", weights)
        share_buffers(model)
        detector = with_tta(cfg, model, options)
        if threads and threads.chosen is None and len(loader) >= WORTH_MEASURING:
            choose_threads(cfg, detector, loader, threads)
        with autocast_of(cfg), terminal_quiet():
            return evaluate_together(detector, loader, evaluators, threshold)

    def evaluate() -> dict[str, Any]:
        averages = cfg.train.model_ema.enabled and ema.get_model_ema_state(model).has_inited()
        if cfg.train.model_ema.enabled and not averages:
            logger.warning("There are no averaged weights in this checkpoint")
        results: dict[str, Any] = {}
        error = None
        if not averages or not cfg.train.model_ema.use_ema_weights_for_eval_only:
            plain, error = run("trained")
            results = {f"{task}_without_ema" if averages else task: metrics for task, metrics in plain.items()}
        if averages and error is None:
            with ema.apply_model_ema_and_restore(model):  # detrex restores nothing if an error passes through it
                averaged, error = run("averaged")
            results |= averaged
        if error is not None:
            with annotations_explained(names):
                raise error
        if comm.is_main_process():
            finish_results(cfg)
        return results

    return evaluate


def choose_threads(cfg: DictConfig, model: nn.Module, loader: Iterable[Any], threads: ThreadChooser) -> None:
    """Time the model on the first batch until the number of CPU threads is chosen."""
    batch = next(iter(loader))
    training = model.training
    model.eval()
    with torch.no_grad(), autocast_of(cfg):
        while threads.chosen is None:
            with threads.work():
                model(batch)
    model.train(training)


def share_buffers(model: nn.Module) -> None:
    """Copy the buffers of the first process, which are those in checkpoints, to all processes.

    Otherwise each process would evaluate with the batch-norm statistics of its own images.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def finish_results(cfg: DictConfig) -> None:
    """Write the ids of the user's annotations to `coco_instances_results.json`; log if there are no annotations."""
    folder = cfg.dataloader.evaluator.get("output_dir")
    file = Path(folder, "coco_instances_results.json") if folder else None
    written = file is not None and file.is_file()
    for name in dataset_names(cfg, "test"):
        found = annotation_file_of(name)
        json_file = MetadataCatalog.get(name).get("json_file")
        if written and found and json_file != found.path and (left_out := restore_original_ids(file, json_file)):
            logger.info("%s leaves out %d detections of classes that %s does not have", file, left_out, name)
        if found and not found.objects:
            where = f"; the detections are in {file}" if written else ""
            logger.info("%s has no annotated objects, so there are no figures%s", name, where)


def evaluate(cfg: DictConfig, checkpoint: str) -> dict[str, Any]:
    """Evaluate a checkpoint on the test data.

    Args:
        cfg: completed by `session.prepare`.
        checkpoint: a .pth or .safetensors file, or a URL that detectron2 reads.

    Returns:
        `{task: metrics}`, such as `{"bbox": {"AP": 50.2, ...}}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the checkpoint is of another model, or its classes are not those of the data.
    """
    match_evaluation(cfg, checkpoint)
    model = build_model(cfg)
    run = build_evaluation(cfg, model, threads=ThreadChooser(cfg.train.device))
    checkpointer = WholeModelCheckpointer(model, cfg.train.output_dir, **ema.may_get_ema_checkpointer(cfg, model))
    checkpointer.load(checkpoint)
    return dict(run())


def evaluate_together(
    model: nn.Module, loader: Iterable[Any], evaluators: Sequence[DatasetEvaluator], soft_nms_iou: float = 0.0
) -> tuple[dict[str, Any], Exception | None]:
    """Run detectron2's `inference_on_dataset`, and return an error instead of raising it.

    If one process raised, the others would wait for it in a collective operation. Here all processes learn of the error
    at the end, and the evaluators compute no results from a part of the images.

    Args:
        soft_nms_iou: threshold of soft-NMS on the detections; 0: none.

    Returns:
        The results, {} on all but the main process; and the error of this process, or a ValueError with the message of
        another process; None if no process had an error.
    """
    errors: list[Exception] = []
    results = inference_on_dataset(
        _Model(model, errors, soft_nms_iou), _Loader(loader, errors), _Evaluators(evaluators, errors)
    )
    messages = comm.all_gather(_one_line(errors[0]) if errors else None)
    if errors:
        return {}, errors[0]
    for rank, message in enumerate(messages):
        if message is not None:
            return {}, ValueError(f"process {rank}: {message}")
    return dict(results), None


class Evaluations:
    """The evaluations of a training. A failed one is logged, and the training continues.

    Args:
        evaluate: evaluates the model. Every process of a run calls it; if it raises, it raises in all of them.

    Attributes:
        results: of the last evaluation; {} if it failed.
        failures: a line for each evaluation that failed.
        count: number of evaluations so far.
        seconds: duration of the last one.
    """

    def __init__(self, evaluate: Callable[[], Mapping[str, Any]]):
        self._evaluate = evaluate
        self.results: dict[str, Any] = {}
        self.failures: list[str] = []
        self.count = 0
        self.seconds = 0.0

    def __call__(self) -> Mapping[str, Any]:
        self.results = {}
        start = time.perf_counter()
        try:
            self.results = dict(self._evaluate())
        except Exception as error:  # of any kind: the training is worth more than one evaluation
            self.failures.append(_one_line(error))
            logger.error("The evaluation failed, and the training continues: %s", self.failures[-1])
            logger.debug("Where it failed:", exc_info=error)
        self.count += 1
        self.seconds = time.perf_counter() - start
        return self.results

    def raise_failures(self, folder: str) -> None:
        """Raise a ValueError if an evaluation failed; `folder` is where the checkpoints are, for the message."""
        if self.failures:
            count = "an evaluation" if len(self.failures) == 1 else f"{len(self.failures)} evaluations"
            raise ValueError(f"{count} failed: {self.failures[-1]}; the training is complete, see {folder}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Model(nn.Module):
    """Calls a model, and soft-NMS if it is on; keeps its first error, and returns no outputs from then on."""

    def __init__(self, model: nn.Module, errors: list[Exception], soft_nms_iou: float):
        super().__init__()
        self.model, self.errors, self.soft_nms_iou = model, errors, soft_nms_iou
        self.training = model.training

    def forward(self, inputs: Any) -> Any:
        try:
            outputs = self.model(inputs)
            return [_softened(output, self.soft_nms_iou) for output in outputs] if self.soft_nms_iou else outputs
        except Exception as error:
            self.errors.append(error)
            return []


def _softened(output: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """Return a detector's output with soft-NMS on its `instances`."""
    instances = output["instances"].to("cpu")
    values = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
    order, scores = soft_nms(*(value.float().numpy() for value in values), threshold)
    kept = instances[torch.from_numpy(order)]
    kept.scores = torch.from_numpy(scores)
    return {**output, "instances": kept}


class _Loader:
    """The batches up to the first error."""

    def __init__(self, loader: Iterable[Any], errors: list[Exception]):
        self._loader, self._errors = loader, errors

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in self._loader:
                yield batch
                if self._errors:
                    return
        except Exception as error:
            self._errors.append(error)


class _Evaluators(DatasetEvaluators):
    """Evaluators that are not called after an error in any process."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator], errors: list[Exception]):
        super().__init__(list(evaluators))
        self._errors = errors

    def process(self, inputs: Any, outputs: Any) -> None:
        if not self._errors:
            self._keep_error(lambda: super(_Evaluators, self).process(inputs, outputs))

    def evaluate(self) -> Mapping[str, Any]:
        if any(comm.all_gather(bool(self._errors))):
            return {}
        with numpy_float():
            return self._keep_error(super().evaluate) or {}

    def _keep_error(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._errors.append(error)
            return None
