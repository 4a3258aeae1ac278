"""The detections in an image."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from detrkit.datasets.classes import Classes

from .pictures import draw

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections in one image, best first.

    Attributes:
        name: the image's file, or its number among the given images, such as "picture 3".
        pixels: (H, W, 3) uint8 RGB, the upright image, whose pixels `boxes` refer to.
        boxes: (N, 4) float32, left, top, right, bottom in pixels, within the image.
        scores: (N,) float32, in [0, 1].
        classes: (N,) int64, the model's outputs.
        known: all classes of the detector.
    """

    name: str
    pixels: np.ndarray = field(repr=False)
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    known: Classes = field(repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @cached_property
    def labels(self) -> list[str]:
        """The names of the N classes."""
        return [self.known.names[index] for index in self.classes]

    def draw(self, font: str | os.PathLike | None = None) -> Image.Image:
        """Draw boxes, labels and scores on the image; a small image is enlarged to keep labels readable.

        Args:
            font: a font file for the labels, if no font of this computer has their letters.
        """
        return draw(self.pixels, self.to_instances(), self.known.metadata(), font)

    def to_instances(self) -> Instances:
        """Return the detections as detectron2's `Instances`."""
        return Instances(
            (self.height, self.width),
            pred_boxes=Boxes(torch.from_numpy(self.boxes)),
            scores=torch.from_numpy(self.scores),
            pred_classes=torch.from_numpy(self.classes),
        )

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain data for JSON: box (left, top, right, bottom in pixels), score, class and label of each detection."""
        columns = (self.boxes.tolist(), self.scores.tolist(), self.classes.tolist(), self.labels)
        return [
            {"box": [round(side, 2) for side in box], "score": round(score, 4), "class": index, "label": label}
            for box, score, index, label in zip(*columns, strict=True)
        ]

    def where(self, rows: np.ndarray) -> Detections:
        """The detections of these rows: a mask (N,) of bool, or indices."""
        return replace(self, boxes=self.boxes[rows], scores=self.scores[rows], classes=self.classes[rows])

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file, with the category ids of the data that the detector was trained on."""
        corners = self.boxes.astype(float)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return [
            {"image_id": image_id, "category_id": self.known.ids[index], "bbox": box, "score": score}
            for index, box, score in zip(self.classes, boxes.tolist(), self.scores.tolist(), strict=True)
        ]

    def to_supervision(self) -> supervision.Detections:
        """As Detections of the package supervision, the labels in `data["class_name"]`.

        Raises:
            ImportError: the package is not there.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision() needs a package: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.classes,
            data={"class_name": np.array(self.labels, dtype=str)},
        )
