"""Detectors that were exported as graphs, run by ONNX Runtime or by PyTorch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T

from detrkit.config.exported import CLASSES, INPUT, THRESHOLD, InputSize, threshold_in
from detrkit.datasets.classes import Classes
from detrkit.runtime.soft_nms import checked_threshold

from .graph import EXTRA, OUTPUTS, Shape
from .network import Predictions

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
MAX_SIDE = 1 << 16


class GraphNetwork:
    """A file of `write_onnx` or `write_program`; see `Network`. Subclasses run it.

    Args:
        metadata: what `metadata_of` gave; the file may be a stranger's.
        batch: images that the graph takes at once; None for any number.

    Raises:
        ValueError: the metadata are damaged.
    """

    def __init__(self, path: str | os.PathLike, metadata: Mapping[str, str], batch: int | None):
        self._path = path
        self.score_threshold = threshold_in(metadata, path)
        try:
            self.classes = Classes.from_plain(json.loads(metadata[CLASSES]), str(path))
            given = json.loads(metadata[INPUT])
            self._is_rgb = given["channel_order"] == "RGB"
            self.soft_nms = checked_threshold(given.get("soft_nms"), "soft_nms")
            sides = given.get("height", given.get("short_edge")), given.get("width", given.get("max_size"))
            if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
                raise ValueError(f"no size of images: {sides}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: its metadata are damaged: {error}") from error
        self.shape = Shape(batch, sides if "height" in given else None)
        self._resized_to = InputSize(*sides)

    @property
    def most_at_once(self) -> int | None:
        return self.shape.batch

    def run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """The graph's outputs for images (B, 3, H, W) float32."""
        raise NotImplementedError

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        old = pixels.shape[:2]
        new = self.shape.size or self._resized_to.shape(*old)
        pixels = T.ResizeTransform(*old, *new).apply_image(pixels if self._is_rgb else pixels[..., ::-1])
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def detect(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Predictions]:
        filled = [*images, *[images[-1]] * ((self.shape.batch or len(images)) - len(images))]
        try:
            found = self.run(np.stack(filled).astype(np.float32))
        except Exception as error:  # ONNX Runtime's own derive from it directly
            raise ValueError(f"{self._path} cannot be run: {' '.join(str(error).split())}") from error
        seen = images[0].shape[1:]
        return [_in_picture(Predictions(*(x[n] for x in found)), seen, size) for n, size in enumerate(sizes)]


class OnnxNetwork(GraphNetwork):
    """An ONNX file.

    Args:
        device: "cpu", "cuda", or "auto": CUDA where ONNX Runtime has it.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: ONNX Runtime is not installed.
        ValueError: it cannot run the file, the file does not say what its input and output are, or no such device.
    """

    def __init__(self, path: str | os.PathLike, device: str = "auto"):
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{path} needs a package, onnxruntime: {EXTRA}") from error
        there = {kind: name for kind, name in PROVIDERS.items() if name in onnxruntime.get_available_providers()}
        device = next(iter(there)) if device == "auto" else device
        if device not in there:
            raise ValueError(f"device={device} is not there for ONNX Runtime, which has {', '.join(there)}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of what its optimizer takes out
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=[there[device]])
        except Exception as error:  # its own derive from it directly
            raise ValueError(f"{path} is no ONNX file that can be run: {' '.join(str(error).split())}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        inputs, outputs = self._session.get_inputs(), [output.name for output in self._session.get_outputs()]
        if CLASSES not in metadata or INPUT not in metadata or len(inputs) != 1 or outputs != list(OUTPUTS):
            raise ValueError(f"{path} was not written by `align-detr export`: its input and output are not known")
        self._input = inputs[0].name
        super().__init__(path, metadata, inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None)

    def run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return self._session.run(None, {self._input: images})


class ProgramNetwork(GraphNetwork):
    """A `.pt2` file, of one's own: `torch.export.load` trusts what it reads."""

    def __init__(self, path: Path):
        metadata = {CLASSES: "", INPUT: "", THRESHOLD: ""}
        program = torch.export.load(path, extra_files=metadata)
        (image,) = (node.meta["val"] for node in program.graph.nodes if node.name == "images")
        batch = image.shape[0] if isinstance(image.shape[0], int) else None
        self._module = program.module()
        super().__init__(path, metadata, batch)

    @torch.no_grad()
    def run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return [output.numpy() for output in self._module(torch.from_numpy(images))]


def _in_picture(found: Predictions, seen: tuple[int, int], size: tuple[int, int]) -> Predictions:
    """Detections in pixels of the image, without what is outside of it, as detectron2's postprocessing has them."""
    height, width = size
    boxes = found.boxes * np.array([width / seen[1], height / seen[0]] * 2, np.float32)
    boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return Predictions(boxes[keep], found.scores[keep], found.classes[keep])
