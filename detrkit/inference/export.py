"""A trained detector as one file: weights with their config, ONNX, or torch.export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from detrkit.config.exported import input_size, test_options, threshold_metadata, write_exported
from detrkit.datasets.files import image_files
from detrkit.datasets.images import read_image

from .agreement import LISTED, Comparison, compare, compare_each
from .graph import Shape, metadata_of, write_onnx, write_program
from .network import Network
from .pytorch import PyTorchNetwork
from .runtimes import OnnxNetwork, ProgramNetwork
from .sources import find_source, stored_threshold

WEIGHTS, GRAPHS = ".safetensors", (".onnx", ".pt2")
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
    float64: bool = False,
    overrides: Sequence[str] = (),
    which: str | None = None,
) -> ExportedFile:
    """Write a detector as one file.

    Args:
        source: the folder of a training, or an exported file; None with `config` and `checkpoint`.
        output: ends in .safetensors (weights with config, classes and input size), .onnx or .pt2 (torch.export). The
            last two map images (N, 3, H, W), float32 in [0, 255], to boxes (N, K, 4), xyxy in pixels of the input,
            scores and classes (N, K), best first.
        checkpoint: weights; with `source`, in place of its own.
        batch: images at once; by default 1, or any number if `dynamic`.
        size: (height, width) of the input in pixels; by default what the config makes of 480 x 640, or any size if
            `dynamic`.
        dynamic: leave free what `batch` and `size` do not say.
        float64: compute in float64 (.onnx only), to tell rounding from a mistake.
        overrides: `key=value` that `config` was changed by; settings that belong to the weights do not replace them.
        which: "best" or "final" checkpoint, if `source` is the folder of a training.

    Raises:
        ValueError: options do not fit the kind of file, or the source cannot be used.
        FileNotFoundError: there is no such source.
        ImportError: a package that this kind of file needs is missing.
    """
    path = Path(output)
    _check_options(path, batch, size, dynamic, float64)
    cfg, weights, classes = find_source(source, config, checkpoint, overrides, which)
    if path.resolve() == Path(weights).resolve():
        raise ValueError(f"--output {path} is where the weights come from: give another name")
    network = PyTorchNetwork(cfg, weights, classes, "cpu", "float32")
    network = network.in_float64() if float64 else network
    if path.suffix == WEIGHTS:
        write_exported(path, network.model.state_dict(), cfg, network.classes, stored_threshold(weights))
        return ExportedFile(path, network, None, weights)
    if network.tta:
        raise ValueError(f"train.test_aug.enabled=True: a graph has one pass; set it to False to write {path}")
    resized = input_size(cfg)
    example = resized.shape(*LANDSCAPE)
    shape = Shape(batch or (None if dynamic else 1), tuple(size) if size else None if dynamic else example)
    channel_order = cfg.dataloader.test.mapper.get("img_format", "RGB")
    metadata = metadata_of(network.classes, resized, shape, channel_order, test_options(cfg))
    metadata |= threshold_metadata(stored_threshold(weights))
    write = write_onnx if path.suffix == ".onnx" else write_program
    write(network.model, path, metadata, shape, example)
    return ExportedFile(path, network, shape, weights)


def _check_options(
    path: Path, batch: int | None, size: Sequence[int] | None, dynamic: bool, float64: bool
) -> None:
    """Raise ValueError if options do not fit the kind of file."""
    if path.suffix not in (WEIGHTS, *GRAPHS):
        raise ValueError(f"--output {path}: a name that ends in {WEIGHTS}, {' or '.join(GRAPHS)}, please")
    given = {"batch": batch is not None, "size": size is not None, "dynamic": dynamic}
    if path.suffix == WEIGHTS and (graph_only := [name for name, is_given in given.items() if is_given]):
        raise ValueError(f"--{graph_only[0]} is for {' and '.join(GRAPHS)}: a {WEIGHTS} file has no graph")
    if float64 and path.suffix != ".onnx":
        raise ValueError("--float64 is for .onnx")
    if any(number is not None and number < 1 for number in (batch, *(size or []))):
        raise ValueError("--batch and --size are at least 1")


def open_graph(path: Path) -> Network:
    """The network in a .onnx or .pt2 file, on the CPU."""
    return OnnxNetwork(path, "cpu") if path.suffix == ".onnx" else ProgramNetwork(path)


class Check(NamedTuple):
    """How far a graph's detections are from PyTorch's.

    Attributes:
        results: one for each image.
        rounding: for the images that disagree, how far PyTorch and the graph are from PyTorch in float64.
    """

    results: list[Comparison]
    rounding: tuple


def check_graph(reference: PyTorchNetwork, other: Network, folder: Path) -> Check:
    """Run the images of a folder through PyTorch and a graph.

    Args:
        reference: the detector in PyTorch.
        other: the graph, such as `open_graph` returns.

    Raises:
        ValueError: the folder has no images, or nothing is detected there, so nothing was compared.
    """
    files = list(image_files(folder))
    if not files:
        raise ValueError(f"--check {folder}: no image in this folder")
    results = list(compare(reference, other, ((path.name, read_image(path)) for path in files)))
    if not any(result.counts[0] for result in results):
        raise ValueError(f"--check {folder}: nothing scores above 0.05 there, so nothing was compared")
    wrong = [path for path, result in zip(files, results, strict=True) if not result.agrees]
    if not wrong:
        return Check(results, ())
    images = ((path.name, read_image(path)) for path in wrong[:LISTED])
    return Check(results, compare_each(reference.in_float64(), [reference, other], other.prepare, images))
