"""Detect objects in image files, draw them, and write COCO's results."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from detrkit.analysis import batches_of_one_size, detections, predict_layers
from detrkit.config.exported import test_options
from detrkit.datasets.classes import Classes, classes_of_dataset, dataset_names
from detrkit.datasets.images import image_suffixes, read_image
from detrkit.inference.detector import SCORE_THRESHOLD, Detector
from detrkit.inference.pictures import draw, reason_of
from detrkit.inference.runtimes import is_graph
from detrkit.inference.sources import classes_in_file, load_named_config, stored_threshold
from detrkit.runtime.allocation import keep_freed_memory
from detrkit.runtime.scores import checked_score
from detrkit.runtime.text import plural
from detrkit.training.loading import load_detector


@dataclass(frozen=True)
class Options:
    """What to keep of the detections, and where to write it.

    Attributes:
        output: folder of the drawn images; None to draw none.
        results: file of the detections in COCO's results format.
        font: file for the labels; None for one that has their letters.
        score_threshold: leave out detections that score less; None for the one stored with the weights, else 0.3.
        top: most detections of an image.
        layer: decoder layer, from 1; None for the last.
        batch_size: images of one size at a time.
        tile, overlap: see `Detector`.
        runtime, dtype: of a graph, see `open_graph`.
    """

    output: Path | None = Path("output/demo")
    results: Path | None = None
    font: str | None = None
    score_threshold: float | None = None
    top: int = 100
    layer: int | None = None
    batch_size: int = 4
    tile: int | None = None
    overlap: float = 0.2
    runtime: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        if self.score_threshold is not None:
            checked_score(self.score_threshold, "score_threshold")


@dataclass
class Outcome:
    """Result of `detect`.

    Attributes:
        entries: COCO results of each file that was read.
        failed: files that could not be read, and inputs that are no image.
        highest: the highest score of any detection, kept or not.
    """

    entries: dict[Path, list[dict]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    highest: float = 0.0

    def line(self, options: Options) -> str:
        """Return a summary; where nothing was detected, with the highest score."""
        if not self.entries:
            return f"no image could be read of {plural(len(self.failed), 'input')}: nothing was drawn"
        count = sum(map(len, self.entries.values()))
        places = [f"drawn in {options.output}"] if options.output else []
        places += [f"results in {options.results}"] if options.results else []
        left_out = f"; {len(self.failed)} left out" if self.failed else ""
        hint = ""
        if self.entries and not count and self.highest >= 0.01:
            lower = int(self.highest * 0.8 * 100) / 100
            hint = f"; highest score {self.highest:.2f}: try --score-threshold {lower:.2g}"
        counts = f"{plural(count, 'detection')} in {plural(len(self.entries), 'image')}"
        return f"{counts}: {', '.join(places)}{left_out}{hint}"


class Example(NamedTuple):
    """An image file with its detections.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        instances: detections in pixels, best first, before thresholds.
    """

    file: Path
    pixels: np.ndarray
    instances: Instances


def detect(
    config: str, checkpoint: str, inputs: Sequence[str], options: Options, overrides: Sequence[str] = ()
) -> Outcome:
    """Detect objects in image files, and write drawings and results.

    Files that cannot be read are reported on stderr and left out.

    Args:
        config: name or path of a config, or an exported .safetensors, .onnx or .xml file.
        checkpoint: weights, or the exported file again.
        inputs: image files, folders and globs.
        overrides: `key=value`.

    Raises:
        ValueError, OSError: the detector or an option cannot be used.
    """
    files, missing = find_images(inputs)
    if not files:
        raise FileNotFoundError(f"no image among the inputs: {'; '.join(missing)}")
    targets = output_paths(files, options.output) if options.output else {}
    outcome = Outcome(failed=list(missing))
    with progress_of(files, missing) as progress:
        make = _with_model if options.tile is None and not is_graph(config) else _with_detector
        examples, classes, threshold = make(config, checkpoint, files, options, overrides, outcome.failed, progress)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
        ids, metadata = image_ids(files), classes.metadata()
        for file, pixels, instances in examples:
            instances = instances[torch.tensor(classes.used)[instances.pred_classes]]
            outcome.highest = max([outcome.highest, *instances.scores.tolist()])
            instances = instances[instances.scores >= threshold][: options.top]
            if options.output:
                draw(pixels, instances, metadata, options.font).save(targets[file])
            outcome.entries[file] = to_coco(instances, ids[file], file, classes.ids)
            progress.update()
    if options.results:
        write_json(options.results, [entry for file in files for entry in outcome.entries.get(file, [])])
    return outcome


def _with_model(
    config: str,
    checkpoint: str,
    files: Sequence[Path],
    options: Options,
    overrides: Sequence[str],
    failed: list[str],
    progress: tqdm,
) -> tuple[Iterator[Example], Classes, float]:
    _check_runtime(config, options.runtime, options.dtype)
    cfg = load_named_config(config, overrides)
    keep_freed_memory()
    threshold = _threshold_of(options, stored_threshold(checkpoint))
    if test_options(cfg):
        if options.layer is not None:
            names = ", ".join(f"train.{name}" for name in test_options(cfg))
            raise ValueError(f"--layer {options.layer} shows plain detections of a decoder layer: switch off {names}")
        detector = Detector(config=cfg, weights=checkpoint, device=cfg.train.device, overrides=overrides)
        classes = classes_of_outputs(detector.cfg, checkpoint)
        return _of_detector(detector, files, 1, failed, progress), classes, threshold
    model = load_detector(cfg, checkpoint, overrides=overrides)

    def examples() -> Iterator[Example]:
        for batch in batches_of_one_size(read_all(files, cfg, failed, progress), options.batch_size):
            for example, instances in zip(batch, run(model, batch, options.layer), strict=True):
                yield Example(example["file"], example["pixels"], instances)

    return examples(), classes_of_outputs(cfg, checkpoint), threshold


def _with_detector(
    config: str,
    checkpoint: str,
    files: Sequence[Path],
    options: Options,
    overrides: Sequence[str],
    failed: list[str],
    progress: tqdm,
) -> tuple[Iterator[Example], Classes, float]:
    if options.layer is not None:
        raise ValueError(f"--layer={options.layer} needs a model of PyTorch, and no --tile")
    detector = open_detector(
        config, checkpoint, overrides, options.tile, options.overlap, options.runtime, options.dtype
    )
    batch_size = 1 if options.tile is None else options.batch_size
    examples = _of_detector(detector, files, batch_size, failed, progress)
    return examples, detector.classes, _threshold_of(options, detector.score_threshold)


def _of_detector(
    detector: Detector, files: Sequence[Path], batch_size: int, failed: list[str], progress: tqdm
) -> Iterator[Example]:
    for file in files:
        try:
            found = next(detector(file, 0.0, batch_size=batch_size))
        except ValueError as error:
            leave_out(file, error.__cause__ or error, failed, progress)
            continue
        yield Example(file, found.pixels, found.to_instances())


def open_detector(
    config: str,
    checkpoint: str,
    overrides: Sequence[str] = (),
    tile: int | None = None,
    overlap: float = 0.2,
    runtime: str | None = None,
    dtype: str = "float32",
) -> Detector:
    """Return the detector that a command line names; see `detect`. `runtime` and `dtype` are of a graph.

    Raises:
        ValueError, OSError: it cannot be used.
    """
    if is_graph(config):
        if overrides or checkpoint != config:
            raise ValueError(
                f"{config} is a fixed graph: it takes no other weights, no --layer, no --tta and no key=value"
            )
        return Detector(config, tile=tile, overlap=overlap, runtime=runtime, dtype=dtype)
    _check_runtime(config, runtime, dtype)
    cfg = load_named_config(config, overrides)
    device = cfg.train.device
    keep_freed_memory()
    return Detector(config=cfg, weights=checkpoint, device=device, overrides=overrides, tile=tile, overlap=overlap)


def _check_runtime(config: str, runtime: str | None, dtype: str) -> None:
    if runtime is not None or dtype != "float32":
        raise ValueError(f"--runtime and --dtype are for graphs (.onnx, .xml), and PyTorch runs {config}")


def _threshold_of(options: Options, stored: float | None) -> float:
    if options.score_threshold is not None:
        return options.score_threshold
    return SCORE_THRESHOLD if stored is None else stored


@contextmanager
def progress_of(files: Sequence[Path], missing: Sequence[str]) -> Iterator[tqdm]:
    """Show a progress bar, after a line for each input without an image."""
    with tqdm(total=len(files), unit="image", disable=None) as progress:
        for problem in missing:
            progress.write(f"left out {problem}", file=sys.stderr)
        yield progress


def leave_out(file: Path, error: BaseException, failed: list[str], progress: tqdm) -> None:
    """Report a file that cannot be read."""
    failed.append(str(file))
    progress.write(f"left out {file}: {reason_of(error)}", file=sys.stderr)
    progress.update()


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the image files of the inputs, each once and in order, and a line for each input without one."""
    suffixes = image_suffixes()
    files: dict[Path, None] = {}
    problems = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
            problem = f"{text}: no image in this folder"
        elif path.exists():
            inside, problem = [path], ""
        else:  # a file's name may hold brackets, so this comes last
            inside = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file())
            problem = f"{text}: nothing matches" if glob.has_magic(text) else f"{text}: no such file"
        files |= dict.fromkeys(inside)
        if not inside:
            problems.append(problem)
    return list(files), problems


def output_paths(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return a file in `folder` for each image, of the same name; numbered where several have one name."""
    sources = {path.resolve() for path in files}
    targets: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in files:
        name, number = path.stem, 1
        while name.casefold() in taken:  # some file systems do not tell upper from lower case
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.casefold())
        targets[path] = folder / f"{name}.png"
        if targets[path].resolve() in sources:
            raise ValueError(f"{targets[path]} is among the inputs and would be overwritten: choose another --output")
    return targets


def image_ids(files: Sequence[Path]) -> dict[Path, int]:
    """Return COCO's id of each image: its name if all names are different numbers, otherwise 1, 2, ..."""
    numbers = [int(path.stem) if path.stem.isdecimal() and path.stem.isascii() else None for path in files]
    usable = None not in numbers and len(set(numbers)) == len(numbers)
    return dict(zip(files, numbers if usable else range(1, len(files) + 1), strict=True))


def read_all(files: Sequence[Path], cfg: DictConfig, failed: list[str], progress: tqdm) -> Iterator[dict]:
    """Yield the model's input for each file that can be read; the others are reported and added to `failed`."""
    mapper = cfg.dataloader.test.mapper
    augmentations = T.AugmentationList(instantiate(mapper.augmentation))
    channel_order = mapper.get("img_format", "RGB")
    for path in files:
        try:
            pixels = read_image(path)
        except Exception as error:  # Pillow's decoders raise many kinds on broken files
            leave_out(path, error, failed, progress)
            continue
        augmented = T.AugInput(pixels if channel_order == "RGB" else pixels[..., ::-1])
        augmentations(augmented)
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        height, width = pixels.shape[:2]
        yield {"image": tensor, "height": height, "width": width, "file": path, "pixels": pixels}


def run(model: nn.Module, batch: list[dict], layer: int | None) -> list[Instances]:
    """Detections of a decoder layer, in pixels of the original images, best first."""
    logits, boxes = predict_layers(model, batch)
    count = len(logits)
    if layer is not None and not 1 <= layer <= count:
        raise ValueError(f"--layer={layer}, but the decoder's layers are 1 to {count}")
    index = count - 1 if layer is None else layer - 1
    return detections(model, logits[index], boxes[index], batch)


def classes_of_outputs(cfg: DictConfig, checkpoint: str) -> Classes:
    """Return the classes that a checkpoint knows, else those of the config's data, else numbers with a warning."""
    classes = classes_in_file(checkpoint) or classes_of_dataset(cfg)
    count = cfg.model.get("num_classes") or (len(classes.names) if classes else 0)
    if classes is None:
        names = ", ".join(dataset_names(cfg, "train") or dataset_names(cfg, "test"))
        print(f"warning: the dataset {names} is not registered here, so classes are shown as numbers", file=sys.stderr)
        return Classes.numbered(count)
    return classes.for_outputs(count)


def to_coco(instances: Instances, image_id: int, path: Path, category_ids: Sequence[int]) -> list[dict]:
    """Return detections as entries of a COCO results file, with the file's name."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[index],
            "bbox": box,
            "score": score,
            "file_name": str(path),
        }
        for index, box, score in zip(
            instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist(), strict=True
        )
    ]


def write_json(path: Path, entries: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, ensure_ascii=False) + "\n", encoding="utf-8")
