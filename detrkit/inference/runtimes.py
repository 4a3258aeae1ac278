"""Detectors that were exported as graphs, run by ONNX Runtime, OpenVINO or PyTorch."""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T

from detrkit.config.exported import CLASSES, INPUT, THRESHOLD, InputSize, threshold_in
from detrkit.datasets.classes import Classes
from detrkit.runtime.soft_nms import checked_threshold

from .graph import EXTRA, OPENVINO_EXTRA, OUTPUTS, Shape
from .network import Predictions

# Files that each runtime takes. The first runtime that takes a file is its default.
RUNTIMES = {"onnxruntime": (".onnx",), "openvino": (".onnx", ".xml")}
GRAPHS = tuple(dict.fromkeys(suffix for suffixes in RUNTIMES.values() for suffix in suffixes))
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
# OpenVINO's names of the types that it computes in: as a hint, and among the capabilities of a device.
OPENVINO_TYPES = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}
MAX_SIDE = 1 << 16
# In the messages of ONNX Runtime and OpenVINO on files that are cut off, or of another kind.
UNREADABLE = (
    "INVALID_PROTOBUF",
    "No graph was found",
    "Error parsing",
    "tags mismatch",
    "Unable to read the model",
    "Incorrect weights in bin file",
)
logger = logging.getLogger(__name__)


def is_graph(source: object) -> bool:
    """Whether this names a graph that `open_graph` takes, by the end of its name."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix in GRAPHS


def open_graph(
    path: str | os.PathLike,
    runtime: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
    threads: int | None = None,
) -> GraphNetwork:
    """Open an exported graph.

    Args:
        runtime: one of RUNTIMES; None: ONNX Runtime for `.onnx`, OpenVINO for `.xml`.
        device, dtype: see `OnnxNetwork` and `OpenVinoNetwork`. ONNX Runtime computes in the types of the file, so that
            `dtype` is float32 there.
        threads: of the CPU; None for the runtime's default.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the runtime is not installed.
        ValueError: there is no such runtime, it does not take such files, or an option or the file cannot be used.
    """
    path, dtype = Path(path), str(dtype).removeprefix("torch.")
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r} is none of {', '.join(RUNTIMES)}")
    runtime = runtime or next((name for name, suffixes in RUNTIMES.items() if path.suffix in suffixes), None)
    if runtime is None or path.suffix not in RUNTIMES[runtime]:
        suffixes = RUNTIMES.get(runtime, GRAPHS)
        raise ValueError(f"{path}: {runtime or 'a graph'} takes a file that ends in {' or '.join(suffixes)}")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if runtime == "openvino":
        return OpenVinoNetwork(path, device, dtype, threads)
    if dtype != "float32":
        raise ValueError(
            f"dtype={dtype}: ONNX Runtime computes in the types of numbers in {path}; export another file "
            "(`--precision`), or take runtime=openvino"
        )
    return OnnxNetwork(path, device, threads)


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
        threads: of the CPU; None: one for each core.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: it cannot run the file, the file does not say what its input and output are, or no such device.
    """

    def __init__(self, path: str | os.PathLike, device: str = "auto", threads: int | None = None):
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
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=[there[device]])
        except Exception as error:  # its own derive from it directly
            raise ValueError(_problem(path, "ONNX file that can be run", error)) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        inputs, outputs = self._session.get_inputs(), [output.name for output in self._session.get_outputs()]
        _check_origin(path, metadata, len(inputs), outputs)
        self._input = inputs[0].name
        super().__init__(path, metadata, inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None)

    def run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return self._session.run(None, {self._input: images})


class OpenVinoNetwork(GraphNetwork):
    """An ONNX file or an `.xml` file of OpenVINO, with its `.bin`.

    OpenVINO chooses bfloat16 by itself where a CPU has units for it. Here the default is float32.

    Args:
        device: "cpu", "auto" for the same, or another of OpenVINO's devices, such as "gpu".
        dtype: "float32", "bfloat16" or "float16"; float32 instead, with a warning, where the device has no units for
            it.
        threads: of the CPU; None: one for each core.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: it cannot run the file, the file does not say what its input and output are, or no such device or
            type.
    """

    def __init__(
        self, path: str | os.PathLike, device: str = "auto", dtype: str = "float32", threads: int | None = None
    ):
        try:
            import openvino
        except ImportError as error:
            raise ImportError(f"{path} needs a package, openvino: {OPENVINO_EXTRA}") from error
        core = _openvino_core(openvino)
        there = [name.lower() for name in core.available_devices]
        device = "cpu" if device == "auto" else device
        if device not in there:
            raise ValueError(f"device={device} is not there for OpenVINO, which has {', '.join(there)}")
        if dtype not in OPENVINO_TYPES:
            raise ValueError(f"dtype={dtype} is none of {', '.join(OPENVINO_TYPES)}")
        hint, capability = OPENVINO_TYPES[dtype]
        if capability not in core.get_property(device.upper(), "OPTIMIZATION_CAPABILITIES"):
            logger.warning("This device has no units for %s: OpenVINO computes in float32 instead", dtype)
            hint = "f32"
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        try:
            model = core.read_model(path)
            compiled = core.compile_model(model, device.upper(), options)
        except Exception as error:
            raise ValueError(_problem(path, "file that OpenVINO can run", error)) from error
        metadata = _openvino_metadata(model)
        _check_origin(path, metadata, len(model.inputs), [next(iter(output.names), "") for output in model.outputs])
        self._request, self._lock = compiled.create_infer_request(), threading.Lock()
        batch = model.inputs[0].partial_shape[0]
        super().__init__(path, metadata, batch.get_length() if batch.is_static else None)

    def run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with self._lock:  # a request serves one thread at a time
            found = self._request.infer([images])
            return [found[name] for name in OUTPUTS]


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


def _problem(path: str | os.PathLike, kind: str, error: Exception) -> str:
    """Why a runtime cannot read a file, in one line."""
    text = " ".join(str(error).split())
    if any(words in text for words in UNREADABLE):
        beside = f" or {Path(path).stem}.bin beside it" if Path(path).suffix == ".xml" else ""
        return f"{path}{beside} is incomplete, or no {kind}: copy or export it again"
    return f"{path} is no {kind}: {text}"


def _check_origin(path: str | os.PathLike, metadata: Mapping[str, str], inputs: int, outputs: Sequence[str]) -> None:
    """Raise ValueError if `align-detr export` did not write a graph."""
    if CLASSES not in metadata or INPUT not in metadata or inputs != 1 or list(outputs) != list(OUTPUTS):
        raise ValueError(f"{path} was not written by `align-detr export`: its input and output are not known")


@functools.cache
def _openvino_core(openvino: ModuleType) -> Any:
    """The process's one `openvino.Core`.

    A Core that compiles replaces the stack on which signal handlers run, and its end puts back the one before. Where a
    second one outlived the first, that was freed memory, and the next signal (Ctrl-C, the end of a data worker) crashed
    the process.
    """
    return openvino.Core()


def _openvino_metadata(model: Any) -> dict[str, str]:
    """Return the metadata of an `openvino.Model`, which keeps those of an ONNX file under "framework"."""
    paths = {key: ["framework", key] for key in (CLASSES, INPUT, THRESHOLD)}
    return {key: model.get_rt_info(path).value for key, path in paths.items() if model.has_rt_info(path)}


def _in_picture(found: Predictions, seen: tuple[int, int], size: tuple[int, int]) -> Predictions:
    """Detections in pixels of the image, without what is outside of it, as detectron2's postprocessing has them."""
    height, width = size
    boxes = found.boxes * np.array([width / seen[1], height / seen[0]] * 2, np.float32)
    boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return Predictions(boxes[keep], found.scores[keep], found.classes[keep])
