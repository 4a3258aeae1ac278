"""Time of each augmentation, on the training images of a config in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from detrkit.datasets.augmentations import (
    AlbumentationsTransforms,
    ColorJitter,
    LargeScaleJitter,
    TorchvisionTransforms,
)
from detrkit.datasets.images import read_image
from detrkit.datasets.mapper import with_rgb_images
from detrkit.datasets.mixing import MixingMapper
from detrkit.training.randomness import random_states_kept, seed_cpu

from .stopwatch import Measurement, Stopwatch, Timing, by_turns

AFFINE = {"degrees": 0, "translate": (0.1, 0.1)}
LIBRARIES: dict[str, Callable[[], Any]] = {
    "torchvision: RandomAffine": lambda: TorchvisionTransforms([{"name": "RandomAffine", **AFFINE}]),
    "albumentations: RandomBrightnessContrast, HorizontalFlip": lambda: AlbumentationsTransforms(
        [{"name": "RandomBrightnessContrast", "p": 1.0}, {"name": "HorizontalFlip", "p": 0.5}]
    ),
}
NONE, DECODED = "none", "decoding alone"


def mappers_to_time(node: DictConfig, images: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Any], Any]]:
    """Mappers by the name of their augmentation, which is always applied.

    Libraries that cannot be imported are left out.

    Args:
        node: of `dataloader.train.mapper`, with the arguments `augmentation` and `augmentation_with_crop`.
        images: dataset dicts, of which mosaic and copy-paste draw others.
    """

    def mapper(*augmentation: Any) -> Callable[[Any], Any]:
        given = {"augmentation": list(augmentation), "augmentation_with_crop": None}
        return with_rgb_images(instantiate({**node, **given}))

    plain = mapper()
    mappers = {
        NONE: plain,
        "the config's own": with_rgb_images(instantiate(node)),
        "LargeScaleJitter, 1024": mapper(LargeScaleJitter(size=1024)),
        "LargeScaleJitter, 640": mapper(LargeScaleJitter(size=640)),
        "ColorJitter": mapper(ColorJitter(prob=1.0)),
        "mosaic": MixingMapper(plain, images, mosaic=1.0),
        "copy-paste": MixingMapper(plain, images, copy_paste=1.0),
    }
    for name, build in LIBRARIES.items():
        try:
            mappers[name] = mapper(build())
        except ImportError:
            continue
    return mappers


def time_augmentations(
    node: DictConfig, images: Sequence[Mapping[str, Any]], repeats: int
) -> Iterator[dict[str, float | str]]:
    """Processor seconds per image with each augmentation, by turns; each turn has the same random numbers.

    Returns:
        Records with `augmentation`, `image_s` (decoding, augmenting, tensors) and `added_s` (more than without any).
    """

    def over_images(function: Callable[[dict[str, Any]], Any]) -> Measurement:
        def run(watch: Stopwatch) -> None:
            with random_states_kept():
                seed_cpu(0)
                for image in images:
                    function(dict(image))
            watch.mark("images")

        return run

    runs = {name: over_images(function) for name, function in mappers_to_time(node, images).items()}
    runs[DECODED] = over_images(lambda image: read_image(image["file_name"]))
    timings = by_turns(runs, torch.device("cpu"), repeats, time.process_time)
    for name, timing in timings.items():
        seconds = timing.median / len(images)
        yield {"augmentation": name, "image_s": seconds, "added_s": added(timing, timings[NONE]) / len(images)}


def added(timing: Timing, base: Timing) -> float:
    """Median over the turns of the difference of both, in seconds; turns of one moment see the same other load."""
    totals = zip(timing.repeats, base.repeats, strict=True)
    return float(np.median([sum(ours.values()) - sum(others.values()) for ours, others in totals]))
