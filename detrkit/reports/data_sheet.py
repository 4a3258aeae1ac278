"""A sheet of training images as a config augments them, with their boxes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from omegaconf import DictConfig
from PIL import Image, ImageDraw

from detrkit.datasets.classes import dataset_names
from detrkit.inference.fonts import label_font
from detrkit.reports.sheet import CELL, FAINT, GAP, INK, MARGIN, PAPER, cell, legend, shorten
from detrkit.runtime.colors import class_colors
from detrkit.runtime.text import plural
from detrkit.training.builders import build_loader
from detrkit.training.randomness import random_states_kept, seed_cpu

ROW = 26  # height of a caption, pixels


def draw_training_images(
    cfg: DictConfig,
    output: str | os.PathLike,
    num_images: int = 16,
    columns: int = 4,
    seed: int = 0,
    font: str | None = None,
) -> int:
    """Draw the first training images of a config after augmentation, with their boxes, and write one image file.

    Args:
        cfg: as for `train`; its images are read in this process.
        output: .png or .jpg.
        num_images: number of images.
        columns: images in a row.
        seed: of shuffle and augmentation.
        font: a font file for all text; None chooses one that has the letters.

    Returns:
        The number of images drawn.

    Raises:
        ValueError: a number is below 1, or the config's training data are not images with instances.
    """
    if num_images < 1 or columns < 1:
        raise ValueError("--num and --columns are at least 1")
    names = dataset_names(cfg, "train")
    examples = training_examples(cfg, num_images, seed)
    metadata = MetadataCatalog.get(names[0])
    classes = list(metadata.get("thing_classes") or [])
    colors = class_colors(len(classes))
    title = f"{' + '.join(names)}: training images after augmentation"
    captions = [caption(example) for example in examples]
    with label_font([title, *classes, *captions], font) as font_of_size:
        heading, text = font_of_size(20), font_of_size(13)
        columns = min(columns, len(examples))
        width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
        used = sorted({int(label) for example in examples for label in example["instances"].gt_classes})
        key = legend([(classes[label], colors[label]) for label in used], width - 2 * MARGIN, text)
        top = MARGIN + 34 + key.height + GAP
        rows = -(-len(examples) // columns)
        sheet = Image.new("RGB", (width, top + rows * (CELL + ROW) + MARGIN), PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((MARGIN, MARGIN), shorten(title, width - 2 * MARGIN, heading), fill=INK, font=heading)
        sheet.paste(key, (MARGIN, MARGIN + 34))
        for number, (example, words) in enumerate(zip(examples, captions, strict=True)):
            x = MARGIN + number % columns * (CELL + GAP)
            y = top + number // columns * (CELL + ROW)
            sheet.paste(draw_example(example, colors, cfg.dataloader.train.mapper.get("img_format", "RGB")), (x, y))
            draw.text((x, y + CELL + 4), shorten(words, CELL, text), fill=FAINT, font=text)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output)
    return len(examples)


def training_examples(cfg: DictConfig, count: int, seed: int) -> list[dict[str, Any]]:
    """The first training examples of a config: `image` (3, H, W) uint8 and `instances`, read in this process.

    Raises:
        ValueError: the training data have another form.
    """
    cfg.dataloader.train.num_workers = 0
    with random_states_kept():
        seed_cpu(seed)
        np.random.seed(seed)
        batches = iter(build_loader(cfg, "train"))
        examples = list(itertools.islice(itertools.chain.from_iterable(batches), count))
    for example in examples:
        if not (
            isinstance(example, Mapping) and "image" in example and isinstance(example.get("instances"), Instances)
        ):
            raise ValueError("the training data of this config are not images with instances, so they cannot be drawn")
    return examples


def caption(example: Mapping[str, Any]) -> str:
    """Such as "street.jpg, 480 x 640: 3 objects"."""
    height, width = example["image"].shape[-2:]
    name = Path(example.get("file_name", "image")).name
    return f"{name}, {height} x {width}: {plural(len(example['instances']), 'object')}"


def draw_example(example: Mapping[str, Any], colors: list[tuple[int, int, int]], channel_order: str) -> Image.Image:
    """The image with its boxes in the colours of the classes, in a square cell."""
    pixels = example["image"].permute(1, 2, 0).numpy()
    pixels = np.ascontiguousarray(pixels if channel_order == "RGB" else pixels[..., ::-1])
    scale = CELL / max(pixels.shape[:2])
    visualizer = Visualizer(pixels, scale=scale, instance_mode=ColorMode.SEGMENTATION)
    instances = example["instances"]
    assigned = [tuple(channel / 255 for channel in colors[label]) for label in instances.gt_classes.tolist()]
    drawn = visualizer.overlay_instances(boxes=instances.gt_boxes.to("cpu"), assigned_colors=assigned)
    return cell(drawn.get_image(), CELL)
