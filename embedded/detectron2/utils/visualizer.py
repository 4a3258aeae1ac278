"""Draw boxes with labels on an image, with Pillow."""

from __future__ import annotations

import colorsys
import math
import sys
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from importlib.util import find_spec
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image, ImageColor, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Color = str | Sequence[float]  # a name ("g", "red", "#ff8800") or red, green, blue in [0, 1]
Rect = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the canvas

MIN_FONT_SIZE = 10
DEFAULT_FONT = "DejaVuSans.ttf"  # of matplotlib; it has the Latin, Greek and Cyrillic letters
SHORT_COLOR_NAMES = {
    "b": "blue",
    "g": "green",
    "r": "red",
    "c": "cyan",
    "m": "magenta",
    "y": "yellow",
    "k": "black",
    "w": "white",
}


class ColorMode(Enum):
    """How predictions are coloured."""

    IMAGE = 0  # each instance has a colour of its own
    SEGMENTATION = 1  # each class has; metadata.thing_colors where given
    IMAGE_BW = 2  # as IMAGE, on a grey image


class VisImage:
    """The drawn image; `img` is RGB uint8 (H, W, 3)."""

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        self.canvas = Image.fromarray(np.ascontiguousarray(img)).convert("RGB")
        if scale != 1:
            size = (max(1, round(self.canvas.width * scale)), max(1, round(self.canvas.height * scale)))
            self.canvas = self.canvas.resize(size, Image.Resampling.BICUBIC)

    @property
    def width(self) -> int:
        return self.canvas.width

    @property
    def height(self) -> int:
        return self.canvas.height

    def get_image(self) -> np.ndarray:
        """RGB, uint8, (scaled H, scaled W, 3)."""
        return np.array(self.canvas)

    def save(self, filepath: str | PathLike) -> None:
        """Writes the image; the suffix chooses the format."""
        self.canvas.save(filepath)


def _palette_rgb(index: int) -> tuple[float, float, float]:
    """The `index`-th of a sequence of colours of which near neighbours differ clearly; in [0, 1].

    Hues advance by the golden ratio, which keeps any number of them apart; lightness alternates, so that
    close hues met later still differ.
    """
    hue = (0.02 + index * (math.sqrt(5) - 1) / 2) % 1.0
    return colorsys.hls_to_rgb(hue, (0.52, 0.66, 0.42)[index % 3], 0.95)


def _lighten(color: Sequence[float], amount: float) -> tuple[float, ...]:
    """Moves a colour in [0, 1] towards white (or, with a negative amount, black)."""
    target = 1.0 if amount > 0 else 0.0
    return tuple(channel + (target - channel) * abs(amount) for channel in color)


def _to_rgb(color: Color) -> RGB:
    if isinstance(color, str):
        return ImageColor.getrgb(SHORT_COLOR_NAMES.get(color, color))[:3]
    return tuple(round(255 * float(min(max(channel, 0), 1))) for channel in color[:3])


def _contrasting(color: RGB) -> RGB:
    """Black or white, whichever is easier to read on `color` (Rec. 601 luma)."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _font_file() -> str | None:
    """The file of matplotlib's sans-serif font, as on the real detectron2; None: there is no matplotlib."""
    key, matplotlib = "font.sans-serif", sys.modules.get("matplotlib")
    # Importing it takes long, and where nobody has, nobody has changed its settings.
    if matplotlib and matplotlib.rcParams[key] != matplotlib.rcParamsDefault[key]:
        from matplotlib.font_manager import FontProperties, findfont

        return findfont(FontProperties(family=matplotlib.rcParams[key]))
    spec = find_spec("matplotlib")
    file = spec and Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / DEFAULT_FONT
    return str(file) if file and file.is_file() else None


@lru_cache(maxsize=16)
def _font(file: str | None, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def _area(box: Rect) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _overlap(a: Rect, b: Rect) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


class Visualizer:
    """Draws detections or annotations on an image.

    All coordinates are pixels of `img_rgb`, whatever the scale. The drawing methods return the `VisImage`. Text is in
    matplotlib's sans-serif font, `matplotlib.rcParams["font.sans-serif"]`; letters that it lacks are boxes.

    Args:
        img_rgb: RGB, (H, W, 3), values in 0-255.
        metadata: class names in `thing_classes`, colours (0-255) in `thing_colors`; both are optional.
        scale: of the output; lines and letters stay crisp because the image is enlarged before drawing.
        instance_mode: see `ColorMode`.
        font_size_scale: multiplies the size of the labels.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: object | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        pixels = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        if instance_mode is ColorMode.IMAGE_BW:
            pixels = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
        self.output = VisImage(pixels, scale)
        self._class_names = getattr(metadata, "thing_classes", None)
        self._class_colors = getattr(metadata, "thing_colors", None)
        self._instance_mode = instance_mode
        # The size actually reached: that of the output is whole pixels.
        self._scale = (self.output.width / pixels.shape[1], self.output.height / pixels.shape[0])
        diagonal = math.hypot(self.output.width, self.output.height)
        self._font_size = max(MIN_FONT_SIZE, diagonal / 70) * font_size_scale
        self._line_width = max(1, round(diagonal / 300))

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draws `pred_boxes`, labelled by `pred_classes` and `scores` as far as present; any device.

        Args:
            predictions: boxes are xyxy pixels.
            jittering: in `ColorMode.SEGMENTATION`, vary the lightness so that objects of a class differ.
        """
        predictions = predictions.to("cpu")
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        scores = predictions.scores.tolist() if predictions.has("scores") else None
        if self._instance_mode is ColorMode.SEGMENTATION and classes is not None:
            colors = self._colors_by_class(classes, jittering)
        else:
            colors = None
        return self.overlay_instances(
            boxes=predictions.pred_boxes if predictions.has("pred_boxes") else None,
            labels=self._labels(classes, scores),
            assigned_colors=colors,
            alpha=1.0,
        )

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draws a dataset dict's `annotations`, coloured by class; crowd regions are dashed and say so."""
        annotations = dic.get("annotations") or []
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        classes = [a["category_id"] for a in annotations]
        crowd = [bool(a.get("iscrowd", 0)) for a in annotations]
        labels = [
            f"{name} (crowd)" if is_crowd else name
            for name, is_crowd in zip(self._labels(classes, None) or [], crowd, strict=True)
        ]
        return self._overlay(
            boxes, labels, self._colors_by_class(classes, jittering=False), 1.0, ["--" if c else "-" for c in crowd]
        )

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | torch.Tensor | None = None,
        labels: Sequence[str] | None = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draws N boxes, the largest first, and their labels over all of them.

        Args:
            boxes: (N, 4), xyxy pixels.
            labels: N strings.
            assigned_colors: N colours; by default each box has one of its own.
            alpha: opacity of the boxes in [0, 1]; labels are opaque.
        """
        boxes = [] if boxes is None else boxes
        rows = (boxes.tensor if isinstance(boxes, Boxes) else torch.as_tensor(boxes)).tolist()
        return self._overlay(rows, labels, assigned_colors, alpha, ["-"] * len(rows))

    def draw_box(
        self,
        box_coord: Sequence[float],
        alpha: float = 0.5,
        edge_color: Color = "g",
        line_style: str = "-",
    ) -> VisImage:
        """Draws the outline of `box_coord` (xyxy); `line_style` "--" dashes it. A part outside is left out."""
        draw = ImageDraw.Draw(self.output.canvas, "RGBA")
        x0, y0, x1, y1 = self._rectangle(box_coord)
        rgb, opacity, width = _to_rgb(edge_color), round(255 * alpha), self._line_width
        color = (*rgb, opacity)
        if line_style == "-":
            # A faint contrasting rim keeps the line visible on a background of its own colour.
            rim = (*_contrasting(rgb), opacity // 2)
            draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=rim)
            if min(x1 - x0, y1 - y0) >= 2 * width:
                draw.rectangle((x0 + width, y0 + width, x1 - width, y1 - width), outline=rim)
            draw.rectangle((x0, y0, x1, y1), outline=color, width=width)
            return self.output
        dash = 4 * width + 2
        for start in range(x0, x1, 2 * dash):
            end = min(start + dash, x1)
            draw.rectangle((start, y0, end, y0 + width - 1), fill=color)
            draw.rectangle((start, y1 - width + 1, end, y1), fill=color)
        for start in range(y0, y1, 2 * dash):
            end = min(start + dash, y1)
            draw.rectangle((x0, start, x0 + width - 1, end), fill=color)
            draw.rectangle((x1 - width + 1, start, x1, end), fill=color)
        return self.output

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Writes `text` on a plate in the contrasting colour, moved as far as needed to lie in the image.

        Args:
            position: x, y; the text begins below y, and to the sides of x as `horizontal_alignment` says.
            font_size: in pixels of the output.
            horizontal_alignment: "left", "center" or "right": where in the text x is.
            rotation: degrees, counter-clockwise.
        """
        shift = {"left": 0.0, "center": 0.5, "right": 1.0}
        if horizontal_alignment not in shift:
            raise ValueError(f"horizontal_alignment must be left, center or right, not {horizontal_alignment!r}")
        foreground = _to_rgb(color)
        plate = self._plate(text, foreground, _contrasting(foreground), font_size)
        if rotation:
            plate = plate.rotate(rotation, expand=True, resample=Image.Resampling.BICUBIC)
        x = position[0] * self._scale[0] - shift[horizontal_alignment] * plate.width
        self._paste(plate, *self._inside(x, position[1] * self._scale[1], plate.size))
        return self.output

    def get_output(self) -> VisImage:
        return self.output

    def _overlay(
        self,
        boxes: Sequence[Sequence[float]],
        labels: Sequence[str] | None,
        colors: Sequence[Color] | None,
        alpha: float,
        line_styles: Sequence[str],
    ) -> VisImage:
        for name, values in (("labels", labels), ("assigned_colors", colors)):
            if values is not None and len(values) != len(boxes):
                raise ValueError(f"{len(boxes)} boxes but {len(values)} {name}")
        colors = colors or [_palette_rgb(index) for index in range(len(boxes))]
        order = sorted(range(len(boxes)), key=lambda i: _area(boxes[i]), reverse=True)
        for i in order:
            self.draw_box(boxes[i], alpha=alpha, edge_color=colors[i], line_style=line_styles[i])
        if labels is None:
            return self.output
        placed: list[tuple[Image.Image, int, int]] = []
        # Small objects choose first and are drawn last: few places beside them are clearly theirs.
        for i in reversed(order):
            background = _to_rgb(colors[i])
            plate = self._plate(labels[i], _contrasting(background), background)
            taken = [(x, y, x + other.width, y + other.height) for other, x, y in placed]
            placed.append((plate, *self._label_position(self._rectangle(boxes[i]), plate.size, taken)))
        for plate, x, y in reversed(placed):
            self._paste(plate, x, y)
        return self.output

    def _label_position(self, box: Rect, size: tuple[int, int], taken: list[Rect]) -> tuple[int, int]:
        """The place at the box, in order of preference, that hides the least of the labels drawn before."""
        x0, y0, x1, y1 = box
        width, height = size
        candidates = [
            (x, y) for y in (y0 - height, y1 + 1, y0, y1 + 1 - height) for x in (x0, x1 + 1 - width)
        ] + [(x, y) for y in (y0, y1 + 1 - height) for x in (x1 + 1, x0 - width)]

        def cost(place: tuple[float, float]) -> float:
            x, y = self._inside(*place, size)
            rect = (x, y, x + width, y + height)
            moved = abs(x - place[0]) + abs(y - place[1])
            return sum(_overlap(rect, other) for other in taken) + moved * height / 4

        return self._inside(*min(candidates, key=cost), size)

    def _plate(self, text: str, color: RGB, background: RGB, font_size: float | None = None) -> Image.Image:
        """`text` on an opaque rectangle that just holds it."""
        font = _font(_font_file(), font_size or self._font_size)
        # The height of the font, not of this text: plates then have one height and one baseline.
        ascent, descent = font.getmetrics()
        left, _, right, _ = font.getbbox(text)
        pad = max(2, round(font.size / 6))
        size = (math.ceil(right - left) + 2 * pad, ascent + descent + 1)
        plate = Image.new("RGBA", size, (*background, 255))
        draw = ImageDraw.Draw(plate)
        # The edge separates labels of the same colour that touch.
        draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=tuple(channel * 2 // 3 for channel in background))
        draw.text((pad - left, 0), text, fill=(*color, 255), font=font)
        return plate

    def _paste(self, plate: Image.Image, x: int, y: int) -> None:
        self.output.canvas.paste(plate, (x, y), mask=plate)

    def _inside(self, x: float, y: float, size: tuple[int, int]) -> tuple[int, int]:
        """The place nearest to (x, y) where something of `size` lies in the image, its start at least."""
        return (
            round(max(0, min(x, self.output.width - size[0]))),
            round(max(0, min(y, self.output.height - size[1]))),
        )

    def _rectangle(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        """A box as the first and last pixel columns and rows of its outline on the canvas."""
        (x_scale, y_scale), (x0, y0, x1, y1) = self._scale, box
        left, top = math.floor(x0 * x_scale), math.floor(y0 * y_scale)
        right, bottom = math.ceil(x1 * x_scale) - 1, math.ceil(y1 * y_scale) - 1
        return left, top, max(left, right), max(top, bottom)

    def _labels(self, classes: Sequence[int] | None, scores: Sequence[float] | None) -> list[str] | None:
        """A label such as "person 87%", without the parts that are not known."""
        if classes is None and scores is None:
            return None
        names = [""] * len(scores) if classes is None else [self._class_name(index) for index in classes]
        if scores is None:
            return names
        return [f"{name} {score:.0%}".strip() for name, score in zip(names, scores, strict=True)]

    def _class_name(self, index: int) -> str:
        return self._class_names[index] if self._class_names else str(index)

    def _colors_by_class(self, classes: Sequence[int], jittering: bool) -> list[tuple[float, ...]]:
        colors = []
        seen: dict[int, int] = {}
        for index in classes:
            if self._class_colors:
                color = tuple(channel / 255 for channel in self._class_colors[index])
            else:
                color = _palette_rgb(index)
            count = seen[index] = seen.get(index, -1) + 1
            colors.append(_lighten(color, (0.0, 0.3, -0.3)[count % 3]) if jittering else color)
        return colors
