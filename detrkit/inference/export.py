"""A trained detector as one file: weights with their config, ONNX, OpenVINO, or torch.export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog
from omegaconf import DictConfig

from detrkit.config.exported import input_size, test_options, threshold_metadata, write_exported
from detrkit.datasets.files import image_files

from .agreement import LISTED, THRESHOLD, Comparison, compare, compare_each
from .graph import Shape, metadata_of, trace_onnx, write_bytes, write_openvino, write_program
from .low_precision import to_float16, to_int8
from .network import Network
from .pictures import readable_images
from .pytorch import PyTorchNetwork
from .runtimes import GraphNetwork, ProgramNetwork, open_graph
from .sources import find_source, stored_threshold

if TYPE_CHECKING:
    from onnx import ModelProto

WEIGHTS, GRAPHS = ".safetensors", (".onnx", ".xml", ".pt2")
# Files that can have each precision.
PRECISIONS = {
    "float32": (WEIGHTS, *GRAPHS),
    "float64": (".onnx",),
    "float16": (".onnx", ".xml"),
    "int8": (".onnx",),
}
MOST_CALIBRATION_IMAGES = 100
LANDSCAPE = (480, 640)  # height and width of the image whose resized shape is the default size


class ExportedFile(NamedTuple):
    """A written file.

    Attributes:
        network: the detector in PyTorch that it was made from.
        shape: batch and size of a graph's input; None for weights.
        weights: the file that the weights came from.
    """

    path: Path
    network: PyTorchNetwork
    shape: Shape | None
    weights: str = ""


def export(
    source: str | os.PathLike | None,
    output: str | os.PathLike,
    *,
    config: DictConfig | None = None,
    checkpoint: str | None = None,
    batch: int | None = None,
    size: Sequence[int] | None = None,
    dynamic: bool = False,
    precision: str = "float32",
    calibration: str | os.PathLike | None = None,
    overrides: Sequence[str] = (),
    which: str | None = None,
) -> ExportedFile:
    """Write a detector as one file.

    Args:
        source: the folder of a training, or an exported file; None with `config` and `checkpoint`.
        output: ends in .safetensors (weights with config, classes and input size), .onnx, .xml (OpenVINO, with the
            weights in a .bin beside it) or .pt2 (torch.export). The graphs map images (N, 3, H, W), float32 in
            [0, 255], to boxes (N, K, 4), xyxy in pixels of the input, scores and classes (N, K), best first.
        checkpoint: weights; with `source`, in place of its own.
        batch: images at once; by default 1, or any number if `dynamic`.
        size: (height, width) of the input in pixels; by default what the config makes of 480 x 640, or any size if
            `dynamic`.
        dynamic: leave free what `batch` and `size` do not say.
        precision: "float32"; "float64" (.onnx), to tell rounding from a mistake; "float16", see `to_float16`, in an
            .xml file of the stored weights alone; "int8" (.onnx), see `to_int8`.
        calibration: images for int8: a folder, or the name of a dataset; at most MOST_CALIBRATION_IMAGES of them.
        overrides: `key=value` that `config` was changed by; settings that belong to the weights do not replace them.
        which: "best" or "final" checkpoint, if `source` is the folder of a training.

    Raises:
        ValueError: options do not fit the kind of file, or the source cannot be used.
        FileNotFoundError: there is no such source.
        ImportError: a package that this kind of file needs is missing.
    """
    path = Path(output)
    _check_options(path, batch, size, dynamic)
    _check_precision(path, precision, calibration)
    cfg, weights, classes = find_source(source, config, checkpoint, overrides, which)
    images = readable_images(calibration_files(calibration) if calibration else [])
    if path.resolve() == Path(weights).resolve():
        raise ValueError(f"output={path} is where the weights come from: give another name")
    network = PyTorchNetwork(cfg, weights, classes, "cpu", "float32")
    network = network.in_float64() if precision == "float64" else network
    if path.suffix == WEIGHTS:
        write_exported(path, network.model.state_dict(), cfg, network.classes, stored_threshold(weights))
        return ExportedFile(path, network, None, weights)
    if network.tta:
        raise ValueError(f"train.test_aug.enabled=True: a graph has one pass; set it to False to write {path}")
    example = input_size(cfg).shape(*LANDSCAPE)
    shape = Shape(batch or (None if dynamic else 1), tuple(size) if size else None if dynamic else example)
    metadata = _metadata(cfg, network, shape) | threshold_metadata(stored_threshold(weights))
    if path.suffix == ".pt2":
        write_program(network.model, path, metadata, shape, example)
    else:
        graph = trace_onnx(network.model, metadata, shape, example)
        _write_graph(graph, path, precision, calibration_inputs(path, metadata, shape, (image for _, image in images)))
    return ExportedFile(path, network, shape, weights)


def _metadata(cfg: DictConfig, network: PyTorchNetwork, shape: Shape) -> dict[str, str]:
    channel_order = cfg.dataloader.test.mapper.get("img_format", "RGB")
    return metadata_of(network.classes, input_size(cfg), shape, channel_order, test_options(cfg))


def _write_graph(graph: ModelProto, path: Path, precision: str, inputs: Iterator[np.ndarray]) -> None:
    """Write an ONNX graph as `.onnx` or `.xml` in a precision; `inputs` calibrate int8."""
    if path.suffix == ".xml":
        write_openvino(graph, path, half=precision == "float16")
        return
    if precision == "float16":
        graph = to_float16(graph)
    elif precision == "int8":
        graph = to_int8(graph, inputs)
    write_bytes(path, graph.SerializeToString())


def calibration_files(source: str | os.PathLike) -> list[Path]:
    """Return image files of a folder or of a registered dataset, at most MOST_CALIBRATION_IMAGES, evenly chosen.

    Raises:
        ValueError: there is no such folder or dataset, or it has no images.
        FileNotFoundError: the annotation file of the dataset is not there.
    """
    if Path(source).is_dir():
        files = list(image_files(Path(source)))
    elif os.fspath(source) in DatasetCatalog.list():
        files = [Path(entry["file_name"]) for entry in DatasetCatalog.get(os.fspath(source))]
    else:
        raise ValueError(f"calibration={source} is neither a folder of images nor the name of a dataset")
    if not files:
        raise ValueError(f"calibration={source}: no images there")
    step = max(1, len(files) / MOST_CALIBRATION_IMAGES)
    return [files[int(index * step)] for index in range(min(len(files), MOST_CALIBRATION_IMAGES))]


def calibration_inputs(
    path: Path, metadata: Mapping[str, str], shape: Shape, pictures: Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield the inputs (N, 3, H, W) float32 of a graph for images (H, W, 3) uint8 RGB, each in a batch of its own."""
    network = GraphNetwork(path, metadata, shape.batch)
    for pixels in pictures:
        yield np.stack([network.prepare(pixels)] * (shape.batch or 1)).astype(np.float32)


def _check_precision(path: Path, precision: str, calibration: str | os.PathLike | None) -> None:
    """Raise ValueError if a precision does not fit the kind of file, or has no images to calibrate with."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision} is none of {', '.join(PRECISIONS)}")
    if path.suffix not in PRECISIONS[precision]:
        raise ValueError(f"precision={precision} is for {' and '.join(PRECISIONS[precision])}, not for {path}")
    if precision == "int8" and not calibration:
        raise ValueError(
            "precision=int8 needs images to calibrate with, best those of the training: give calibration=FOLDER, or "
            "the name of a dataset"
        )
    if calibration and precision != "int8":
        raise ValueError(f"calibration={calibration} is for precision=int8")


def _check_options(path: Path, batch: int | None, size: Sequence[int] | None, dynamic: bool) -> None:
    """Raise ValueError if options do not fit the kind of file."""
    if path.suffix not in (WEIGHTS, *GRAPHS):
        suffixes = f"{WEIGHTS}, {', '.join(GRAPHS[:-1])} or {GRAPHS[-1]}"
        raise ValueError(f"output={path}: a name that ends in {suffixes}, please")
    given = {"batch": batch, "size": size, "dynamic": dynamic or None}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items() if path.suffix == WEIGHTS else ():
        raise ValueError(f"{name}={value} is for {', '.join(GRAPHS)}: a {WEIGHTS} file has no graph")
    for name, numbers in {"batch": [] if batch is None else [batch], "size": size or []}.items():
        if any(number < 1 for number in numbers):
            raise ValueError(f"{name}={' '.join(map(str, numbers))}: at least 1")


def open_exported(path: Path) -> Network:
    """The network in a .onnx, .xml or .pt2 file, on the CPU."""
    return ProgramNetwork(path) if path.suffix == ".pt2" else open_graph(path, device="cpu")


class Check(NamedTuple):
    """How far a graph's detections are from PyTorch's.

    Attributes:
        results: one for each image.
        rounding: for the images that disagree, how far PyTorch and the graph are from PyTorch in float64.
    """

    results: list[Comparison]
    rounding: tuple


def check_images(folder: Path) -> list[Path]:
    """Return the image files that `check_graph` compares on.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no images.
    """
    if not folder.is_dir():
        problem = "give a folder of images" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"--check {folder}: {problem}")
    files = list(image_files(folder))
    if not files:
        raise ValueError(f"--check {folder}: no image in this folder")
    return files


def check_graph(reference: PyTorchNetwork, other: Network, folder: Path, *, explain: bool = True) -> Check:
    """Run the images of a folder through PyTorch and a graph. Images that cannot be read are left out with a warning.

    Args:
        reference: the detector in PyTorch.
        other: the graph, such as `open_exported` returns.
        explain: run the images that disagree in float64 as well.

    Raises:
        FileNotFoundError, ValueError: see `check_images`; or no image can be read, or nothing is detected there, so
            nothing was compared.
    """
    files: list[Path] = []

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for path, pixels in readable_images(check_images(folder)):
            files.append(path)
            yield path.name, pixels

    results = compare(reference, other, pictures())
    if not any(result.counts[0] for result in results):
        raise ValueError(f"--check {folder}: nothing scores above {THRESHOLD:g} there, so nothing was compared")
    wrong = [path for path, result in zip(files, results, strict=True) if not result.agrees]
    if not wrong or not explain:
        return Check(results, ())
    images = ((path.name, pixels) for path, pixels in readable_images(wrong[:LISTED]))
    return Check(results, compare_each(reference.in_float64(), [reference, other], other.prepare, images))
