"""Measure how well a detector's scores agree with its boxes, for one checkpoint or several side by side.

    align-detr analyze --config-file CONFIG --checkpoint FILE \\
        [--compare FILE|CONFIG:FILE ...] [--names NAME ...] [key=value ...]

Runs the test images of CONFIG once through each model, and writes alignment.json, plots, and alignment.html, which
shows all of it in columns and opens from disk. `--compare FILE` is another checkpoint of the same config. `key=value`,
such as `dataloader.test.num_workers=0`, changes every config that has the key. align_detr.analysis says what the
figures are.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from align_detr._platform import describe
from align_detr.analysis import (
    AlignmentTable,
    aligned_logits,
    batches_of_one_size,
    count_places,
    curve,
    detections,
    discriminability,
    encoder_maps,
    examine,
    page,
    place_scores,
    plots,
    predict_layers,
    summarize,
)
from align_detr.analysis.discriminability import BINS
from align_detr.analysis.figures import bootstrap, draw_images, interval
from align_detr.checkpoint_files import load_detector
from align_detr.commands.command_line import errors_in_one_line, interrupts_end, load_configs, take_overrides
from align_detr.data.mapper import with_rgb_images
from align_detr.modeling import MixedMatcher

REPEATS = 200  # of the bootstrap
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass
class Candidate:
    """A model to look at: a column of the report."""

    name: str
    config: str
    checkpoint: str
    cfg: DictConfig


@dataclass
class Data:
    """The images that every model sees, each with its place in the list as `number`."""

    name: str
    images: list[dict]
    targets: list[dict[str, Tensor]]  # labels (G,), boxes (G, 4) cxcywh in [0, 1]


def analyze(args: argparse.Namespace) -> str:
    """Writes the report, and returns a line about it."""
    candidates = read_candidates(args)
    data = read_data(candidates[0].cfg, args.num_images)
    matcher = matcher_of(candidates[0].cfg)
    for candidate in candidates:
        check_classes(candidate, data)

    seen = [run(candidate, data, matcher, args.batch_size) for candidate in candidates]
    report = make_report(candidates, data, *zip(*seen, strict=True))
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "alignment.json", report)
    write_page(args.output, report)
    print(table_of(report))
    return f"Wrote {args.output / 'alignment.html'}, with its plots and alignment.json beside it"


def read_candidates(args: argparse.Namespace) -> list[Candidate]:
    given = [(args.config_file, args.checkpoint), *(split_pair(text, args.config_file) for text in args.compare)]
    if args.names and len(args.names) != len(given):
        raise ValueError(f"--names has {len(args.names)} names for {len(given)} models")
    if args.batch_size < 1 or (args.num_images is not None and args.num_images < 1):
        raise ValueError("--batch-size and --num-images are at least 1")
    candidates = []
    configs = load_configs([config for config, _ in given], args.opts)
    for (config, checkpoint), cfg in zip(given, configs, strict=True):
        if checkpoint is None:
            checkpoint = cfg.train.get("init_checkpoint") or ""
        if checkpoint and "://" not in checkpoint and not Path(checkpoint).is_file():
            raise FileNotFoundError(f"no such checkpoint: {checkpoint}")
        candidates.append(Candidate("", config, checkpoint, cfg))
    for candidate, name in zip(candidates, args.names or default_names(candidates), strict=True):
        candidate.name = name
    return candidates


def split_pair(text: str, config: str) -> tuple[str, str]:
    """`CONFIG:FILE` or `FILE`, of which the config is `config`."""
    pair = re.fullmatch(r"(.+?\.(?:py|ya?ml)):(.+)", text)
    return (pair[1], pair[2]) if pair else (config, text)


def default_names(candidates: Sequence[Candidate]) -> list[str]:
    """The shortest of these that tell the models apart: config, output folder, checkpoint; else numbered."""
    configs = [Path(c.config).stem for c in candidates]
    folders = [Path(c.checkpoint).parent.name if c.checkpoint else f"{Path(c.config).stem}, random" for c in candidates]
    files = [str(Path(c.checkpoint).with_suffix("")) if c.checkpoint else "random" for c in candidates]
    for names in (configs, folders, files):
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"{i}: {name}" for i, name in enumerate(configs, start=1)]


def read_data(cfg: DictConfig, limit: int | None) -> Data:
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


def target_of(image: dict) -> dict[str, Tensor]:
    """Ground truth of a dataset dict, as the criteria take it; crowds and boxes without area are left out."""
    objects = [a for a in image["annotations"] if not a.get("iscrowd", 0)]
    corners = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    left, top, right, bottom = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4).unbind(-1)
    width, height = image["width"], image["height"]
    boxes = torch.stack(
        [
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ],
        dim=-1,
    )
    keep = (right > left) & (bottom > top)
    return {"labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)[keep], "boxes": boxes[keep]}


def matcher_of(cfg: DictConfig) -> MixedMatcher:
    """The first config's matching cost, one-to-one, for all models, so that they are measured alike."""
    cost = cfg.model.get("criterion", {}).get("matcher")
    if cost is None:
        raise ValueError("the config has no model.criterion.matcher, so it is not the config of a DETR detector")
    return MixedMatcher(**{name: value for name, value in cost.items() if name != "_target_"})


def check_classes(candidate: Candidate, data: Data) -> None:
    need = len(MetadataCatalog.get(data.name).get("thing_classes") or ())
    have = candidate.cfg.model.get("num_classes")
    if have is not None and need > have:
        raise ValueError(f"{candidate.config} has model.num_classes={have}, but {data.name} has {need} classes")


def run(
    candidate: Candidate, data: Data, matcher: MixedMatcher, batch_size: int
) -> tuple[AlignmentTable, dict, np.ndarray]:
    """One pass of a model over the data: a row per object, AP of its own and of aligned scores, and how many places of
    objects and background (images, 2, …) the encoder's features score how high."""
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
        for batch in batches_of_one_size(each(loader), batch_size):
            numbers = [x["number"] for x in batch]
            with encoder_maps(model) as maps:
                predictions = predict_layers(model, batch)
            targets = [data.targets[number] for number in numbers]
            if maps:
                places[numbers] = count_places(place_scores(maps, batch[0]["image"].shape[-2:]), targets)
            images = [(x["number"], x["height"], x["width"]) for x in batch]
            table = examine(predictions, targets, images, matcher)
            logits, boxes = predictions.logits[-1], predictions.boxes[-1]
            for name, scores in (("plain", logits), ("aligned", aligned_logits(logits, table, numbers))):
                found = detections(model, scores, boxes, batch)
                evaluators[name].process(batch, [{"instances": instances} for instances in found])
            tables.append(table)
            progress.update(len(batch))
    ids = [image["image_id"] for image in data.images]
    ap = {name: average_precision(evaluator, ids) for name, evaluator in evaluators.items()}
    both = [ap[name].get("AP") for name in ("aligned", "plain")]
    return AlignmentTable.cat(tables), ap | {"cost": None if None in both else both[0] - both[1]}, places


def each(loader: Iterator[list[dict]]) -> Iterator[dict]:
    for batch in loader:
        yield from batch


def average_precision(evaluator: COCOEvaluator, image_ids: list[int]) -> dict[str, float | None]:
    """COCO's figures in percent; None where there are no such objects."""
    quiet = logging.getLogger("detectron2.evaluation")
    level = quiet.level
    quiet.setLevel(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):  # pycocotools prints
            results = evaluator.evaluate(img_ids=image_ids).get("bbox", {})
    finally:
        quiet.setLevel(level)
    values = {name: float(results.get(name, float("nan"))) for name in AP_NAMES}
    return {name: None if value != value else value for name, value in values.items()}


def figures_of_places(places: np.ndarray) -> dict:
    """Discriminability and its curve, of counts (images, 2, …); None where there is nothing to tell apart."""
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
    draws = draw_images(len(data.images), REPEATS)
    drawings = bootstrap(tables, draws)
    models = []
    for candidate, table, ap, drawn, counts in zip(candidates, tables, precisions, drawings, places, strict=True):
        drawn["discriminability"] = np.array([discriminability(np.tensordot(times, counts, 1)) for times in draws])
        figures = summarize(table) | figures_of_places(counts)
        first = models[0]["figures"] if models else figures
        differences = {
            name: {"value": figures[name] - first[name], "interval": interval(drawn[name] - drawings[0][name])}
            for name in drawn
            if models and None not in (figures[name], first[name])
        }
        models.append(
            {
                "name": candidate.name,
                "config": candidate.config,
                "checkpoint": candidate.checkpoint,
                "figures": figures,
                "intervals": {name: interval(values) for name, values in drawn.items()},
                "differences": {name: differences.get(name) for name in drawn},
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
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_page(folder: Path, report: dict) -> None:
    models = report["models"]
    shared = {name: png(draw(models), folder / f"{name}.png") for name, draw in plots.SHARED.items()}
    by_model = [
        {name: png(draw(model), folder / f"{name}_{i}.png") for name, draw in plots.BY_MODEL.items()}
        for i, model in enumerate(models, start=1)
    ]
    (folder / "alignment.html").write_text(page.render(report, shared, by_model), encoding="utf-8")


def png(figure, path: Path) -> bytes:
    figure.savefig(path, dpi=160)
    return path.read_bytes()


def table_of(report: dict) -> str:
    """The figures for a terminal, models in columns."""
    models = report["models"]
    rows = [[name.replace("_", " "), *(model["figures"][name] for model in models)] for name in models[0]["intervals"]]
    rows += [
        ["AP (%)", *(model["ap"]["plain"]["AP"] for model in models)],
        ["aligned AP (%)", *(model["ap"]["aligned"]["AP"] for model in models)],
    ]
    return tabulate(rows, ["", *(model["name"] for model in models)], floatfmt=".3f", missingval="-")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="CONFIG", help="a config as align-detr train takes it"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="weights (default: the config's train.init_checkpoint)")
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        default=[],
        metavar="[CONFIG:]FILE",
        help="further models; another config's own test pipeline is used, on the first config's images",
    )
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="names of the models, in their order")
    parser.add_argument("--output", type=Path, default=Path("output/alignment"), help="folder (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images of one size at a time (default: %(default)s)")
    parser.add_argument("--num-images", type=int, help="only the first so many images")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to all configs that have the key")
    args = parser.parse_intermixed_args(argv)
    for words in (args.compare, args.names):
        take_overrides(words, args.opts)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with errors_in_one_line(), interrupts_end():
        print(analyze(args))


