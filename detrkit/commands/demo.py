"""Detect objects in images, and draw them.

    align-detr demo --weights zoo:NAME --input IMAGE
    align-detr demo [--config-file CONFIG] --checkpoint FILE --input IMAGE|FOLDER|GLOB ... [--output FOLDER] \\
        [--json RESULTS] [--layer I] [key=value ...]

CONFIG is one for align-detr train, FILE its checkpoint or weights (.pth, .safetensors); a file of `align-detr export`
holds both. `zoo:NAME` are published weights, downloaded when first used: `align-detr weights list`. Any format that
Pillow reads will do: rotated by EXIF, grey, 16-bit, palette, CMYK, transparent (on white).
A file that cannot be read is named and left out, and the exit status is 1. `key=value` changes the config, such as
`train.device=cpu`.
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from detrkit.analysis import batches_of_one_size, detections, predict_layers
from detrkit.commands.command_line import finish, take_overrides
from detrkit.datasets.classes import Classes, classes_of_dataset, dataset_names
from detrkit.datasets.images import image_suffixes, read_image
from detrkit.inference.pictures import draw
from detrkit.inference.sources import classes_in_file, config_for
from detrkit.runtime.allocation import keep_freed_memory
from detrkit.training.loading import load_detector


def detect(args: argparse.Namespace) -> bool:
    """Detects and draws; returns whether every input was read."""
    check(args)
    files, missing = find_images(args.input)
    targets = output_paths(files, args.output)
    cfg = config_for(args.config_file, args.checkpoint, args.opts)
    keep_freed_memory()
    model = load_detector(cfg, args.checkpoint, overrides=args.opts)
    classes = classes_of_outputs(cfg, args.checkpoint)
    metadata = classes.metadata()
    args.output.mkdir(parents=True, exist_ok=True)

    failed = list(missing)
    entries: dict[Path, list[dict]] = {}
    ids = image_ids(files)
    with tqdm(total=len(files), unit="image", disable=None) as progress:

        def say(problem: str) -> None:
            progress.write(f"left out {problem}", file=sys.stderr)

        for problem in missing:
            say(problem)
        for batch in batches_of_one_size(read_all(files, cfg, failed, say, progress), args.batch_size):
            found = run(model, batch, args.layer)
            for example, instances in zip(batch, found, strict=True):
                path = example["file"]
                instances = instances[torch.tensor(classes.used)[instances.pred_classes]]
                instances = instances[instances.scores >= args.score_threshold][: args.top]
                if not args.no_pictures:
                    draw(example["pixels"], instances, metadata, args.font).save(targets[path])
                entries[path] = to_coco(instances, ids[path], path, classes.ids)
            progress.update(len(batch))
    if args.json:
        write_json(args.json, [entry for path in files for entry in entries.get(path, [])])
    total = sum(map(len, entries.values()))
    print(summary(args, len(entries), total, len(failed)))
    return not failed


def check(args: argparse.Namespace) -> None:
    if args.batch_size < 1 or args.top < 1:
        raise ValueError("--batch-size and --top are at least 1")
    if args.no_pictures and not args.json:
        raise ValueError("--no-pictures leaves nothing to do without --json")


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The image files that the inputs stand for, each once and in order, and what is wrong with other inputs."""
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
    """A picture in `folder` for each file, named as it is; numbered where several have one name."""
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
    """COCO's id of each image, which is its name, if all names are numbers and differ; else 1, 2, ..."""
    numbers = [int(path.stem) if path.stem.isdecimal() and path.stem.isascii() else None for path in files]
    usable = None not in numbers and len(set(numbers)) == len(numbers)
    return dict(zip(files, numbers if usable else range(1, len(files) + 1), strict=True))


def read_all(files: Sequence[Path], cfg: DictConfig, failed: list[str], say, progress: tqdm) -> Iterator[dict]:
    """What the model takes, of each file that can be read; `failed` and `say` get the others."""
    mapper = cfg.dataloader.test.mapper
    augmentations = T.AugmentationList(instantiate(mapper.augmentation))
    channel_order = mapper.get("img_format", "RGB")
    for path in files:
        try:
            pixels = read_image(path)
        except Exception as error:  # Pillow's decoders raise many kinds on broken files
            failed.append(str(path))
            say(f"{path}: {' '.join(str(error).split()) or type(error).__name__}")
            progress.update()
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
    """The classes that a checkpoint knows, else those of the config's data, else numbers and a warning."""
    classes = classes_in_file(checkpoint) or classes_of_dataset(cfg)
    count = cfg.model.get("num_classes") or (len(classes.names) if classes else 0)
    if classes is None:
        names = ", ".join(dataset_names(cfg, "train") or dataset_names(cfg, "test"))
        print(f"warning: the dataset {names} is not here, so classes have numbers for names", file=sys.stderr)
        return Classes.numbered(count)
    return classes.for_outputs(count)


def to_coco(instances: Instances, image_id: int, path: Path, category_ids: Sequence[int]) -> list[dict]:
    """Detections as entries of a COCO results file, and the file's name."""
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


def summary(args: argparse.Namespace, images: int, found: int, failed: int) -> str:
    places = [] if args.no_pictures else [f"pictures in {args.output}"]
    places += [f"results in {args.json}"] if args.json else []
    left_out = f"; {failed} left out" if failed else ""
    return f"{found} detections in {images} images: {', '.join(places)}{left_out}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="CONFIG", help="not needed for zoo:NAME and exported files")
    parser.add_argument(
        "--checkpoint", "--weights", required=True, metavar="FILE", help="weights: .pth, .safetensors or zoo:NAME"
    )
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders, quoted globs")
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write detections in COCO's results format")
    parser.add_argument("--font", metavar="FILE", help="font file for the labels (default: one with their letters)")
    parser.add_argument("--no-pictures", action="store_true", help="write the results alone")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, help="leave out what scores less (default: %(default)s)"
    )
    parser.add_argument("--top", type=int, default=100, help="most detections of an image (default: %(default)s)")
    parser.add_argument("--layer", type=int, help="decoder layer to show, from 1 (default: the last)")
    parser.add_argument("--batch-size", type=int, default=4, help="images of one size at a time (default: %(default)s)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    take_overrides(args.input, args.opts)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    finish(lambda: detect(args))


