"""The alignment report: how well detectors' scores agree with their boxes, side by side."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator
from matplotlib.figure import Figure
from omegaconf import DictConfig
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from align_detr._platform import describe
from align_detr.modeling import MixedMatcher
from detrkit.analysis import (
    AlignmentTable,
    aligned_logits,
    batches_of_one_size,
    count_places,
    curve,
    detections,
    discriminability,
    encoder_maps,
    examine,
    place_scores,
    plots,
    predict_layers,
    summarize,
)
from detrkit.analysis.discriminability import BINS
from detrkit.analysis.figures import bootstrap, draw_images, interval
from detrkit.analysis.ground_truth import matcher_of, target_of
from detrkit.datasets.annotations import class_key, same_classes, shortened
from detrkit.datasets.classes import Classes
from detrkit.datasets.mapper import with_rgb_images
from detrkit.reports import page
from detrkit.training.loading import load_detector
from detrkit.training.preflight import known_classes, match_evaluation

REPEATS = 200  # of the bootstrap
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass
class Candidate:
    """A model to measure: a column of the report.

    Attributes:
        name: title of the column.
        config: name or path.
        checkpoint: a file or URL; "" for random weights.
        outputs: the model's output for each class of the data; None if both have the same order.
    """

    name: str
    config: str
    checkpoint: str
    cfg: DictConfig
    outputs: list[int] | None = None


@dataclass
class Data:
    """The images that every model is run on; `number` in each is its position in the list."""

    name: str
    images: list[dict]
    targets: list[dict[str, Tensor]]  # labels (G,), boxes (G, 4) cxcywh in [0, 1]


def analyze(
    candidates: Sequence[Candidate], output: Path, num_images: int | None = None, batch_size: int = 8
) -> dict[str, Any]:
    """Measure models side by side on the test images of the first, and write the report.

    Args:
        candidates: the models; at least one.
        output: folder for alignment.html, its plots and alignment.json.
        num_images: use only the first `num_images` images.
        batch_size: images of the same size in a batch.

    Returns:
        The content of alignment.json.

    Raises:
        ValueError: the images have no annotations, or a model has too few classes.
    """
    classes = match_evaluation(candidates[0].cfg, candidates[0].checkpoint)
    data = read_data(candidates[0].cfg, num_images)
    matcher = matcher_of(candidates[0].cfg)
    for candidate in candidates:
        check_classes(candidate, data)
        candidate.outputs = outputs_of(candidate, classes)
    seen = [run(candidate, data, matcher, batch_size) for candidate in candidates]
    report = make_report(candidates, data, *zip(*seen, strict=True))
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "alignment.json", report)
    write_page(output, report)
    return report


def default_names(candidates: Sequence[Candidate]) -> list[str]:
    """The shortest names that differ: of configs, output folders or checkpoints; else numbers and configs."""
    configs = [config_name(c.config) for c in candidates]
    folders = [
        Path(c.checkpoint).parent.name if c.checkpoint else f"{name}, random"
        for c, name in zip(candidates, configs, strict=True)
    ]
    files = [str(Path(c.checkpoint).with_suffix("")) if c.checkpoint else "random" for c in candidates]
    for names in (configs, folders, files):
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"{i}: {name}" for i, name in enumerate(configs, start=1)]


def config_name(config: str) -> str:
    """Name of a config: of its file; of its folder if the file is config.py or config.yaml, as in runs."""
    path = Path(config)
    return path.resolve().parent.name if path.stem == "config" else path.stem


def read_data(cfg: DictConfig, limit: int | None) -> Data:
    """The first `limit` test images of a config, with annotations; ValueError if it has several datasets or none."""
    names = cfg.dataloader.test.dataset.names
    names = [names] if isinstance(names, str) else list(names)
    if len(names) != 1:
        raise ValueError(f"AP is of one dataset, but dataloader.test.dataset.names has {', '.join(names)}")
    images = [
        dict(image, number=number) for number, image in enumerate(instantiate(cfg.dataloader.test.dataset)[:limit])
    ]
    if any("annotations" not in image for image in images):
        raise ValueError(f"{names[0]} has no annotations to compare with")
    return Data(names[0], images, [target_of(image) for image in images])


def check_classes(candidate: Candidate, data: Data) -> None:
    """Raise ValueError if the model has fewer classes than the data."""
    need = len(MetadataCatalog.get(data.name).get("thing_classes") or ())
    have = candidate.cfg.model.get("num_classes")
    if have is not None and need > have:
        raise ValueError(f"{candidate.config} has model.num_classes={have}, but {data.name} has {need} classes")


def outputs_of(candidate: Candidate, classes: Classes | None) -> list[int] | None:
    """The model's output for each of `classes`, by name; None if the order is the same or the names are not known.

    Raises:
        ValueError: the checkpoint knows other classes.
    """
    known = known_classes(candidate.checkpoint)
    if known is None or classes is None or same_classes(known.names, classes.names[: len(known.names)]):
        return None
    place = {class_key(name): output for output, name in enumerate(known.names)}
    keys = [class_key(name) for name in classes.names]
    if set(keys) != place.keys():
        raise ValueError(
            f"{candidate.checkpoint} knows the classes {shortened(known.names)}, but the data have "
            f"{shortened(classes.names)}: compare models of the same classes"
        )
    return [place[key] for key in keys]


def run(
    candidate: Candidate, data: Data, matcher: MixedMatcher, batch_size: int
) -> tuple[AlignmentTable, dict, np.ndarray]:
    """Run a model on the data.

    Returns:
        The table with a row per object; AP of the model's scores ("plain"), of aligned scores ("aligned") and their
        difference ("cost"); and histograms (images, 2, bins) of the encoder's features on objects and background.
    """
    model = load_detector(candidate.cfg, candidate.checkpoint)
    evaluators = {name: COCOEvaluator(data.name, distributed=False) for name in ("plain", "aligned")}
    for evaluator in evaluators.values():
        evaluator.reset()
    test = candidate.cfg.dataloader.test
    loader = build_detection_test_loader(
        dataset=data.images,
        mapper=with_rgb_images(instantiate(test.mapper)),
        num_workers=test.get("num_workers", 0),
    )
    tables, places = [], np.zeros((len(data.images), 2, BINS), int)
    with tqdm(total=len(data.images), desc=candidate.name, unit="image", disable=None) as progress:
        for batch in batches_of_one_size(chain.from_iterable(loader), batch_size):
            numbers = [x["number"] for x in batch]
            with encoder_maps(model) as maps:
                predictions = predict_layers(model, batch)
            if candidate.outputs is not None:
                predictions = predictions._replace(logits=predictions.logits[..., candidate.outputs])
            targets = [data.targets[number] for number in numbers]
            if maps:
                places[numbers] = count_places(place_scores(maps, batch[0]["image"].shape[-2:]), targets)
            images = [(x["number"], x["height"], x["width"]) for x in batch]
            table = examine(predictions, targets, images, matcher)
            logits, boxes = predictions.logits[-1], predictions.boxes[-1]
            for name, scores in (("plain", logits), ("aligned", aligned_logits(logits, table, numbers))):
                outputs = [{"instances": instances} for instances in detections(model, scores, boxes, batch)]
                evaluators[name].process(batch, outputs)
            tables.append(table)
            progress.update(len(batch))
    ids = [image["image_id"] for image in data.images]
    ap = {name: average_precision(evaluator, ids) for name, evaluator in evaluators.items()}
    both = [ap[name].get("AP") for name in ("aligned", "plain")]
    return AlignmentTable.cat(tables), ap | {"cost": None if None in both else both[0] - both[1]}, places


def average_precision(evaluator: COCOEvaluator, image_ids: list[int]) -> dict[str, float | None]:
    """COCO's average precisions in percent; None for kinds of objects that do not occur."""
    logger = logging.getLogger("detectron2.evaluation")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):  # pycocotools prints
            results = evaluator.evaluate(img_ids=image_ids).get("bbox", {})
    finally:
        logger.setLevel(level)
    values = {name: float(results.get(name, float("nan"))) for name in AP_NAMES}
    return {name: None if value != value else value for name, value in values.items()}


def figures_of_places(places: np.ndarray) -> dict:
    """Discriminability and its curve, from histograms (images, 2, bins); None without objects or background."""
    counts = places.sum(0)
    if not counts.any(-1).all():
        return {"discriminability": None, "iof_iob": None}
    iof, iob = curve(counts)
    return {"discriminability": discriminability(counts), "iof_iob": {"iof": iof.tolist(), "iob": iob.tolist()}}


def make_report(
    candidates: Sequence[Candidate],
    data: Data,
    tables: Sequence[AlignmentTable],
    precisions: Sequence[dict],
    places: Sequence[np.ndarray],
) -> dict:
    """The content of alignment.json, from the results of `run` for each candidate."""
    draws = draw_images(len(data.images), REPEATS)
    resamples = bootstrap(tables, draws)
    models = []
    for candidate, table, ap, resampled, counts in zip(candidates, tables, precisions, resamples, places, strict=True):
        resampled["discriminability"] = np.array([discriminability(np.tensordot(times, counts, 1)) for times in draws])
        figures = summarize(table) | figures_of_places(counts)
        first = models[0]["figures"] if models else figures
        differences = {
            name: {"value": figures[name] - first[name], "interval": interval(resampled[name] - resamples[0][name])}
            for name in resampled
            if models and None not in (figures[name], first[name])
        }
        models.append(
            {
                "name": candidate.name,
                "config": candidate.config,
                "checkpoint": candidate.checkpoint,
                "figures": figures,
                "intervals": {name: interval(values) for name, values in resampled.items()},
                "differences": {name: differences.get(name) for name in resampled},
                "ap": ap,
            }
        )
    return {
        "dataset": data.name,
        "images": len(data.images),
        "objects": len(tables[0]),
        "repeats": REPEATS,
        "environment": {"platform": describe().removeprefix("platform: "), "PyTorch": torch.__version__},
        "models": models,
    }


def write_json(path: Path, report: dict) -> None:
    """Write a report as JSON."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_page(folder: Path, report: dict) -> None:
    """Write alignment.html and its plots as PNG files."""
    models = report["models"]
    shared = {name: png(draw(models), folder / f"{name}.png") for name, draw in plots.SHARED.items()}
    by_model = [
        {name: png(draw(model), folder / f"{name}_{i}.png") for name, draw in plots.BY_MODEL.items()}
        for i, model in enumerate(models, start=1)
    ]
    (folder / "alignment.html").write_text(page.render(report, shared, by_model), encoding="utf-8")


def png(figure: Figure, path: Path) -> bytes:
    """Save a figure as a PNG file, and return the file's content."""
    figure.savefig(path, dpi=160)
    return path.read_bytes()


def table_of(report: dict) -> str:
    """The figures as text, with a column per model."""
    models = report["models"]
    rows = [[name.replace("_", " "), *(model["figures"][name] for model in models)] for name in models[0]["intervals"]]
    rows += [
        ["AP (%)", *(model["ap"]["plain"]["AP"] for model in models)],
        ["aligned AP (%)", *(model["ap"]["aligned"]["AP"] for model in models)],
    ]
    return tabulate(rows, ["", *(model["name"] for model in models)], floatfmt=".3f", missingval="–")
