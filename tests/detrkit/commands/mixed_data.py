"""A dataset of noise in wide, high and square images, registered as `mixed_train` and `mixed_val` in $MIXED_DATA.

And what may go wrong with a training, where the environment asks for it:
$HANG_RANK: this process does not come back from reading its tenth image.
$POISON: "loss" or "gradient": from the fourth step on (once, if $POISON_ONCE) the encoder makes it nan.
"""

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from detrex.data import DetrDatasetMapper
from PIL import Image

from detrkit.datasets import register_coco

SIZES = ((48, 32), (32, 48), (40, 40))  # width, height


def write(root: Path, train: int = 26, val: int = 4) -> None:
    """`train` and `val` images with one or two objects of three classes."""
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            width, height = SIZES[generator.integers(3)]
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
            for _ in range(generator.integers(1, 3)):
                box = [int(value) for value in generator.integers(2, 16, 4)]
                annotations.append({"id": len(annotations) + 1, "image_id": number, "bbox": box})
                annotations[-1].update(category_id=int(generator.integers(3)), iscrowd=0, area=box[2] * box[3])
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": "abc"[number]} for number in range(3)],
        }
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


class Mapper(DetrDatasetMapper):
    """One that may hang."""

    calls = 0

    def __call__(self, image):
        self.calls += 1
        if self.calls == 10 and os.environ.get("HANG_RANK") == str(comm.get_rank()):
            time.sleep(3600)
        return super().__call__(image)


class NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")


def poison(what: str) -> None:
    steps = itertools.count()

    def hook(module, inputs, output):
        if type(module).__name__ != "DINOTransformerEncoder" or not module.training:
            return None
        step = next(steps)
        if step < 3 or step > 3 and "POISON_ONCE" in os.environ:
            return None
        return output * float("nan") if what == "loss" else NanGradient.apply(output)

    torch.nn.modules.module.register_module_forward_hook(hook)


def register() -> None:
    root = Path(os.environ["MIXED_DATA"])
    for split in ("train", "val"):
        register_coco(f"mixed_{split}", root / "annotations" / f"{split}.json", root / split)
    if "POISON" in os.environ:
        poison(os.environ["POISON"])
