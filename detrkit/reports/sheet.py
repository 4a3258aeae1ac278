"""A sheet of images with ground truth beside predictions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image, ImageDraw, ImageFont

from detrkit.datasets.images import read_image
from detrkit.datasets.results import with_ids_of_copy
from detrkit.inference.fonts import label_font
from detrkit.runtime.colors import RGB, class_colors
from detrkit.runtime.scores import checked_score
from detrkit.runtime.text import plural

CELL = 320  # side of the square that an image is fitted into, pixels
GAP = 8
MARGIN = 20
PAIRS_PER_ROW = 2
PAPER, CELL_BACKGROUND, INK, FAINT = "white", "#eeeeee", "#1a1a1a", "#666666"


def read_results(path: Path) -> dict[int, list[dict]]:
    """A COCO results file as its entries by image id."""
    if not path.is_file():
        raise FileNotFoundError(f"no results file {path}: an evaluation writes it into its output folder")
    try:
        content = json.loads(path.read_bytes())
        by_image = defaultdict(list)
        for entry in content:
            by_image[entry["image_id"]].append({key: entry[key] for key in ("category_id", "bbox", "score")})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a COCO results file (a list of detections): {error!r}") from error
    return by_image


def evenly(items: Sequence, count: int) -> list:
    """`count` items at equal distances, with the first and the last."""
    positions = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[position] for position in positions]


def select(images: list[dict], count: int) -> list[dict]:
    """`count` images by id: from few objects to many, and if possible one with a crowd and one without objects."""
    ranked = sorted(images, key=lambda image: (len(image["annotations"]), image["image_id"]))
    crowds = [image for image in ranked if any(a.get("iscrowd") for a in image["annotations"])]
    empty = [image for image in ranked if not image["annotations"]]
    chosen = [group[len(group) // 2] for group in (crowds, empty) if group and count >= 4]
    taken = {image["image_id"] for image in chosen}
    others = [image for image in ranked if image["annotations"] and image["image_id"] not in taken]
    chosen += evenly(others, count - len(chosen))
    return sorted(chosen, key=lambda image: image["image_id"])


def to_instances(detections: list[dict], classes: dict[int, int], image_size: tuple[int, int]) -> Instances:
    """Detections of a results file (xywh, dataset category ids) as `Instances` (xyxy, class indices)."""
    boxes = torch.tensor([d["bbox"] for d in detections], dtype=torch.float32).reshape(-1, 4)
    return Instances(
        image_size,
        pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
        scores=torch.tensor([d["score"] for d in detections]),
        pred_classes=torch.tensor([classes[d["category_id"]] for d in detections], dtype=torch.int64),
    )


def read_detections(results: Path, dataset: str) -> tuple[list[dict], Callable[[dict], Instances]]:
    """Read the detections of a dataset's images.

    Args:
        results: coco_instances_results.json of an evaluation.
        dataset: the name under which the dataset is registered.

    Returns:
        The dataset dicts, and a function from one of them to its detections, which have the dataset's class indices.

    Raises:
        FileNotFoundError: there is no such results file.
        ValueError: the file has no results, or those of another dataset; or no such dataset is registered.
    """
    detections = read_results(results)
    if dataset not in DatasetCatalog.list():
        raise ValueError(f"no dataset is registered as {dataset!r}; try one of {', '.join(DatasetCatalog.list())}")
    images = DatasetCatalog.get(dataset)
    json_file = MetadataCatalog.get(dataset).get("json_file")
    if json_file and Path(json_file).is_file():
        detections = with_ids_of_copy(detections, json_file)
    if detections and not detections.keys() & {image["image_id"] for image in images}:
        raise ValueError(f"no detection in {results} is of an image in {dataset}; is it another dataset's?")
    classes = MetadataCatalog.get(dataset).thing_dataset_id_to_contiguous_id
    if unknown := {d["category_id"] for image in detections.values() for d in image} - classes.keys():
        raise ValueError(f"{results} has detections of category {next(iter(unknown))}, which {dataset} does not have")

    def found(image: dict) -> Instances:
        return to_instances(detections.get(image["image_id"], []), classes, (image["height"], image["width"]))

    return images, found


def best_predictions(predictions: Instances, objects: int, threshold: float) -> Instances:
    """The predictions to draw, best first: those that score `threshold` or more, and in any case the best `objects`.

    Args:
        objects: number of objects in the image.
    """
    order = predictions.scores.argsort(descending=True)
    count = max(objects, int((predictions.scores >= threshold).sum()))
    return predictions[order[:count]]


def describe_predictions(predictions: Instances, threshold: float) -> str:
    """Number of drawn predictions, with their highest score if it is below the threshold."""
    text = plural(len(predictions), "prediction")
    highest = predictions.scores.max().item() if len(predictions) else 0.0
    return text if not len(predictions) or highest >= threshold else f"{text}, highest score {highest:.2f}"


def cell(pixels: np.ndarray, side: int) -> Image.Image:
    """An image in the middle of a square cell."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))  # a renderer may return a pixel more than it was asked for
    canvas = Image.new("RGB", (side, side), CELL_BACKGROUND)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def draw_pair(
    image: dict, predictions: Instances, metadata: object, side: int = CELL
) -> tuple[Image.Image, Image.Image]:
    """Square cells of `side` pixels with ground truth and with predictions, in the colours of the classes."""
    pixels = read_image(image["file_name"])
    scale = side / max(pixels.shape[:2])

    def visualizer() -> Visualizer:
        return Visualizer(pixels, metadata, scale=scale, instance_mode=ColorMode.SEGMENTATION, font_size_scale=1.2)

    np.random.seed(0)  # detectron2 varies the colours of ground truth at random
    truth = visualizer().draw_dataset_dict(image)
    predicted = visualizer().draw_instance_predictions(predictions, jittering=False)
    return cell(truth.get_image(), side), cell(predicted.get_image(), side)


def legend(names_and_colors: list[tuple[str, RGB]], width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Colour patches with class names, in as many lines as `width` requires."""
    line, patch = round(font.size * 1.7), round(font.size)
    places, x, y = [], 0, 0
    for name, _ in names_and_colors:
        advance = patch + 6 + round(font.getlength(name)) + 22
        if x and x + advance > width:
            x, y = 0, y + line
        places.append((x, y))
        x += advance
    strip = Image.new("RGB", (width, y + line), PAPER)
    draw = ImageDraw.Draw(strip)
    for (name, color), (x, y) in zip(names_and_colors, places, strict=True):
        middle = y + line // 2
        draw.rectangle((x, middle - patch // 2, x + patch, middle + patch // 2), fill=color)
        draw.text((x + patch + 6, middle), name, fill=INK, font=font, anchor="lm")
    return strip


def shorten(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """`text`, with its middle left out if it is wider than `width`."""
    short, kept = text, len(text)
    while font.getlength(short) > width and kept > 2:
        kept -= 1
        short = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    return short


def contact_sheet(
    images: list[dict],
    predictions: list[Instances],
    metadata: object,
    title: str,
    threshold: float,
    font_of_size: Callable[[float], ImageFont.FreeTypeFont],
) -> Image.Image:
    """Pairs of cells, ground truth left and predictions right, under a title and a legend."""
    heading, text = font_of_size(20), font_of_size(14)
    columns = min(PAIRS_PER_ROW, len(images))
    pair_width, pair_height = 2 * CELL + GAP, CELL + 30
    width = 2 * MARGIN + columns * pair_width + (columns - 1) * 3 * GAP

    used = {a["category_id"] for image in images for a in image["annotations"]}
    used |= {index for instances in predictions for index in instances.pred_classes.tolist()}
    shown = [(metadata.thing_classes[index], tuple(metadata.thing_colors[index])) for index in sorted(used)]
    key = legend(shown, width - 2 * MARGIN, text)

    top = MARGIN + 34 + key.height + 34
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (width, top + rows * pair_height + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), shorten(title, width - 2 * MARGIN, heading), fill=INK, font=heading)
    sheet.paste(key, (MARGIN, MARGIN + 34))
    lefts = [MARGIN + column * (pair_width + 3 * GAP) for column in range(columns)]
    for left in lefts:
        names = ("ground truth", f"predictions (score {threshold:g} or more, or the best)")
        for x, name in zip((left, left + CELL + GAP), names, strict=True):
            draw.text((x, top - 8), name, fill=INK, font=text, anchor="ls")
    for position, (image, instances) in enumerate(zip(images, predictions, strict=True)):
        left, y = lefts[position % columns], top + position // columns * pair_height
        truth, predicted = draw_pair(image, instances, metadata)
        sheet.paste(truth, (left, y))
        sheet.paste(predicted, (left + CELL + GAP, y))
        crowds = sum(bool(a.get("iscrowd")) for a in image["annotations"])
        counts = plural(len(image["annotations"]) - crowds, "object")
        if crowds:
            counts += f", {plural(crowds, 'crowd')}"
        below = y + CELL + 4
        name = shorten(f"{Path(image['file_name']).name}: {counts}", CELL, text)
        draw.text((left, below), name, fill=FAINT, font=text)
        count = describe_predictions(instances, threshold)
        draw.text((left + CELL + GAP, below), count, fill=FAINT, font=text)
    return sheet


def draw_sheet(
    results: Path,
    dataset: str,
    output: Path,
    num_images: int = 12,
    score_threshold: float = 0.3,
    font: str | None = None,
) -> int:
    """Draw a few images of a dataset, ground truth beside predictions, and write them as one image file.

    Args:
        results: coco_instances_results.json of an evaluation.
        dataset: the name under which the dataset is registered.
        output: the file to write, .png or .jpg.
        num_images: images on the sheet, at most.
        score_threshold: predictions that score less are left out, but for the best ones up to the number of objects.
        font: a font file for all text; None chooses one that has the letters.

    Returns:
        The number of images drawn.

    Raises:
        FileNotFoundError: there is no such results file.
        ValueError: the file has no results, or those of another dataset; or no such dataset is registered.
    """
    if num_images < 1:
        raise ValueError(f"--num must be at least 1, not {num_images}")
    checked_score(score_threshold, "score_threshold")
    images, found = read_detections(results, dataset)
    metadata = MetadataCatalog.get(dataset)
    if not hasattr(metadata, "thing_colors"):
        metadata.thing_colors = class_colors(len(metadata.thing_classes))

    images = select(images, num_images)
    predictions = []
    for image in images:
        instances = found(image)
        objects = sum(not a.get("iscrowd") for a in image["annotations"])
        predictions.append(best_predictions(instances, objects, score_threshold))
    title = f"{dataset}: {results}"
    texts = [title, *metadata.thing_classes, *(Path(image["file_name"]).name for image in images)]
    with label_font(texts, font) as font_of_size:
        sheet = contact_sheet(images, predictions, metadata, title, score_threshold, font_of_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output)
    return len(images)
