"""Checks before the first iteration, so that no evaluation fails after hours of training."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from detrkit.datasets.annotations import class_key, shortened
from detrkit.datasets.classes import (
    Classes,
    classes_in_checkpoint,
    classes_of,
    dataset_names,
    dataset_of_outputs,
    match_classes,
)
from detrkit.datasets.images import to_rgb
from detrkit.datasets.registration import annotation_file_of, registration_of
from detrkit.runtime.text import plural
from detrkit.weights import classes_of_weights, local_file

from .checkpoints import ResumePoint
from .run_state import RunState

logger = logging.getLogger("detectron2.preflight")

ORIENTATION = 0x0112  # EXIF tag; values from 5 on exchange width and height
NAMED = 3  # images named in an error
SECONDS_WITHOUT_PROGRESS = 3


def check_data(cfg: DictConfig, splits: Sequence[str]) -> None:
    """Check that the annotation files of a config's datasets are there, before anything is built.

    Args:
        splits: of "train" and "test". "test" is checked only if the config has an evaluator.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
    """
    if "dataloader" not in cfg:
        return  # `prepare` reports it
    used = [split for split in splits if split != "test" or "evaluator" in cfg.dataloader]
    for name in dict.fromkeys(name for split in used for name in dataset_names(cfg, split)):
        registration = registration_of(name)
        if registration is None or "://" in registration.source or Path(registration.source).is_file():
            continue
        variable = registration.metadata.get("root_env")
        advice = f"set the environment variable {variable} to its folder" if variable else "correct it in the config"
        if name.startswith("tiny_coco_"):
            advice = f"`align-detr make-data --synthetic` draws this dataset; to use another place, {advice}"
        raise FileNotFoundError(f"dataset {name}: {registration.source} is not there: {advice}")


def match_training_classes(cfg: DictConfig, point: ResumePoint | None) -> Classes | None:
    """Make the classes of training and test data those of the model's outputs, in their order.

    The outputs are those of the checkpoint to resume from. Else they are those of `train.init_checkpoint`, if it knows
    all classes of the training data and the model has as many outputs. Else they are those of the training data.

    Args:
        point: the checkpoint to resume from.

    Returns:
        The classes of the outputs; None if the training data are not a registered dataset with classes.

    Raises:
        ValueError: classes cannot be matched by name, the model has another number of outputs, or an annotation file
            has a mistake that cannot be corrected.
    """
    names = dataset_names(cfg, "train")
    own = classes_of(names[0]) if names else None
    if own is None:
        return None
    outputs, origin = own, names[0]
    if resumed := _classes_of_run(point):
        outputs, origin = resumed, point.name
    elif (known := known_classes(cfg.train.init_checkpoint, own)) and _cover(known, own, cfg.model.get("num_classes")):
        outputs, origin = known, cfg.train.init_checkpoint
    is_evaluated = "evaluator" in cfg.dataloader
    count = cfg.model.get("num_classes")
    if count is not None and is_evaluated and not resumed and len(outputs.names) < count:
        raise ValueError(
            f"model.num_classes={count}, but {origin} has {plural(len(outputs.names), 'class')} "
            f"({shortened(outputs.names)}): set model.num_classes={len(outputs.names)}"
        )
    outputs = outputs.for_outputs(max(count or 0, len(outputs.names)))
    match_classes(cfg, ("train", "test") if is_evaluated else ("train",), outputs, origin)
    if is_evaluated:
        _warn_without_objects(cfg)
    return outputs


def match_evaluation(cfg: DictConfig, checkpoint: str) -> Classes | None:
    """Make the classes of the test data those of the model's outputs, in their order.

    The outputs are those that the checkpoint knows, else those of `dataset_of_outputs`.

    Returns:
        The classes of the outputs; None if the test data are not a registered dataset with classes.

    Raises:
        ValueError: classes cannot be matched by name, or the model has too few outputs.
    """
    count = cfg.model.get("num_classes")
    test = dataset_names(cfg, "test")
    if not test:
        return None
    outputs, origin = known_classes(checkpoint, classes_of(test[0])), checkpoint
    if outputs is not None and count is not None and len(outputs.names) > count:
        known = plural(len(outputs.names), "class")
        raise ValueError(f"{checkpoint} knows {known}, but model.num_classes={count}")
    if outputs is None:
        origin, outputs = dataset_of_outputs(cfg) or (test[0], classes_of(test[0]))
    if outputs is None:
        return None
    outputs = outputs.for_outputs(max(count or 0, len(outputs.names)))
    match_classes(cfg, ("test",), outputs, origin)
    return outputs


def known_classes(checkpoint: str, data: Classes | None = None, assume: bool = False) -> Classes | None:
    """The class names stored in a checkpoint or an exported file; None if it has none or there is no such file.

    Args:
        data: classes of the data, for files of other code bases; see `weights.classes_of_weights`.
        assume: take a file with detrex's tensor names, 80 rows and no class names to have COCO's classes.
    """
    path = local_file(checkpoint)
    if path is None:
        return None
    if path.suffix == ".safetensors":
        from detrkit.config.exported import read_exported  # safetensors, which other files do not need

        exported = read_exported(path)
        classes = exported and exported.classes
    else:
        classes = classes_in_checkpoint(path)
    classes = classes or classes_of_weights(path, data and data.names, of_detrex=assume)
    return None if classes is None or classes.are_numbers else classes


def _classes_of_run(point: ResumePoint | None) -> Classes | None:
    facts = point.hooks.get(RunState.__qualname__, {}).get("facts", {}) if point else {}
    return Classes.from_plain(facts["classes"], point.name) if facts.get("classes") else None


def _cover(known: Classes, own: Classes, outputs: int | None) -> bool:
    """Whether a model with the known classes has an output for each class of its data."""
    return len(known.names) == outputs and set(map(class_key, own.names)) <= set(map(class_key, known.names))


def _warn_without_objects(cfg: DictConfig) -> None:
    for name in dataset_names(cfg, "test"):
        if (found := annotation_file_of(name)) and not found.objects:
            logger.warning("%s has no annotated objects: evaluations have detections, but no metrics", name)


def check_images(name: str, images: Sequence[Mapping[str, Any]]) -> None:
    """Check the headers of a dataset's images; each process of a run checks its share.

    Args:
        images: dataset dicts; those without `file_name` and those with a URL are skipped.

    Raises:
        ValueError: an image is missing, cannot be read or has another size than its annotation; in all processes.
    """
    share = images[comm.get_rank() :: comm.get_world_size()]
    local = [image for image in share if "file_name" in image and "://" not in image["file_name"]]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        progress = tqdm(
            pool.map(_image_problem, local),
            f"images of {name}",
            len(local),
            leave=False,
            disable=None,
            delay=SECONDS_WITHOUT_PROGRESS,
        )
        problems = [problem for problem in progress if problem]
    problems = [problem for part in comm.all_gather(problems) for problem in part]
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ValueError(
            f"{len(problems)} of {len(images)} images of {name} cannot be used for evaluation: "
            f"{'; '.join(problems[:NAMED])}{more}"
        )


def _image_problem(image: Mapping[str, Any]) -> str | None:
    path = image["file_name"]
    try:
        with Image.open(path) as file:
            size = file.size
            # The EXIF data of a PNG may come after the pixels, which would have to be read.
            exif = file.getexif() if file.format != "PNG" or "exif" in file.info else {}
            if exif.get(ORIENTATION, 1) in range(5, 9):
                size = size[::-1]
            if file.mode == "F" or file.mode.startswith("I"):
                to_rgb(file)  # raises if the values have no known range
    except FileNotFoundError:
        return f"{path} is not there"
    except Image.UnidentifiedImageError:
        return f"{path} is not an image"
    except Exception as error:  # a damaged file may raise anything
        return f"{path} cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    annotated = image.get("width", size[0]), image.get("height", size[1])
    if size != annotated:
        return f"{path} is {size[0]}x{size[1]} pixels, its annotation says {annotated[0]}x{annotated[1]}"
    return None
