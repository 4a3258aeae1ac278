"""The same detector in every runtime and precision: time, size of the files, average precision."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from detrkit.config.exported import input_size
from detrkit.datasets.classes import dataset_names
from detrkit.datasets.images import read_image
from detrkit.datasets.registration import registration_of
from detrkit.inference.export import calibration_files, calibration_inputs
from detrkit.inference.graph import Shape, metadata_of, trace_onnx, write_bytes, write_openvino
from detrkit.inference.graph_evaluation import evaluate_network
from detrkit.inference.low_precision import to_float16, to_int8
from detrkit.inference.network import Network
from detrkit.inference.pytorch import PyTorchNetwork
from detrkit.inference.runtimes import open_graph
from detrkit.inference.sources import find_source
from detrkit.runtime.extras import pip_install
from detrkit.runtime.logs import terminal_quiet
from detrkit.runtime.precision import autocast_is_faster

from .stopwatch import Stopwatch, Timing, by_turns
from .tables import Record
from .workloads import Size

NEEDED = ("onnx", "onnxruntime", "openvino")
FIRST = "PyTorch float32"


@dataclass
class Variant:
    """A detector in a runtime.

    Attributes:
        size: bytes of its files.
    """

    network: Network
    size: int


def measure_runtimes(
    cfg: DictConfig, model: nn.Module, checkpoint: str, size: Size, repeats: int
) -> Iterator[tuple[str, Record]]:
    """Yield the name and the figures of each runtime and precision, on one image of noise.

    The files are those of `align-detr export`, for one image of this size. Each runtime has as many threads as PyTorch.

    Args:
        model: its weights are taken if there is no checkpoint.
        checkpoint: "" for none, and no average precision.
        size: (height, width) in pixels.

    Raises:
        ValueError: a package is missing, or the checkpoint cannot be used.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"--parts runtimes needs {', '.join(missing)}: {pip_install('onnx', 'openvino')}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not checkpoint:
            torch.save({"model": model.state_dict()}, folder / "model.pth")
        source = find_source(None, cfg, checkpoint or folder / "model.pth")
        variants = make_variants(source, folder, size)
        image = np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.float32)
        calls = {name: _call(variant, image, size) for name, variant in variants.items()}
        timings = by_turns(calls, torch.device("cpu"), repeats)
        for name, variant in variants.items():
            precision = average_precision(cfg, variant.network, name) if checkpoint else None
            yield name, _record(variant, timings[name], precision)


def _call(variant: Variant, image: np.ndarray, size: Size) -> Callable[[Stopwatch], None]:
    def run(watch: Stopwatch) -> None:
        variant.network.detect([image], [size])
        watch.mark("inference")

    return run


def _record(variant: Variant, timing: Timing, precision: float | None) -> Record:
    summary = timing.summary()
    return {"ours": summary, "processor_s": summary["processor_s"], "bytes": variant.size, "AP": precision}


def make_variants(source: Any, folder: Path, size: Size) -> dict[str, Variant]:
    """Write the files of a detector in a folder, and open them: by name, PyTorch in float32 first.

    Args:
        source: the `Source` of `find_source`.
    """
    threads = torch.get_num_threads()
    network = PyTorchNetwork(*source, "cpu", "float32")
    resized, shape = input_size(source.cfg), Shape(1, None)
    channel_order = source.cfg.dataloader.test.mapper.get("img_format", "RGB")
    metadata = metadata_of(network.classes, resized, shape, channel_order)
    graph = trace_onnx(network.model, metadata, shape, size)
    files = {name: folder / name for name in ("float32.onnx", "float16.onnx", "int8.onnx", "float32.xml")}
    write_bytes(files["float32.onnx"], graph.SerializeToString())
    write_openvino(graph, files["float32.xml"])
    half = to_float16(copy.deepcopy(graph))
    write_bytes(files["float16.onnx"], half.SerializeToString())
    inputs = _calibration(source.cfg, files["int8.onnx"], metadata, shape, size)
    write_bytes(files["int8.onnx"], to_int8(graph, inputs).SerializeToString())

    weights = sum(value.numel() * value.element_size() for value in network.model.state_dict().values())
    variants = {FIRST: Variant(network, weights)}
    if autocast_is_faster(torch.bfloat16, "cpu"):
        variants["PyTorch bfloat16"] = Variant(PyTorchNetwork(*source, "cpu", "bfloat16"), weights)

    def add(name: str, file: str, dtype: str = "float32") -> None:
        paths = [files[file], *([files[file].with_suffix(".bin")] if file.endswith(".xml") else [])]
        opened = open_graph(files[file], device="cpu", dtype=dtype, threads=threads)
        variants[name] = Variant(opened, sum(path.stat().st_size for path in paths))

    add("ONNX Runtime float32", "float32.onnx")
    add("ONNX Runtime float16", "float16.onnx")
    add("ONNX Runtime int8", "int8.onnx")
    add("OpenVINO float32", "float32.xml")
    add("OpenVINO bfloat16", "float32.xml", "bfloat16")
    return variants


def _calibration(
    cfg: DictConfig, path: Path, metadata: Mapping[str, str], shape: Shape, size: Size
) -> Iterator[np.ndarray]:
    """Yield training images as inputs of a graph; an image of noise if they are not on this machine."""
    names = dataset_names(cfg, "train")
    registration = registration_of(names[0]) if names else None
    if registration is None or not Path(registration.source).is_file():
        noise = np.random.default_rng(1).integers(0, 256, (size[0], size[1], 3), np.uint8)
        return calibration_inputs(path, metadata, shape, iter([noise]))
    return calibration_inputs(path, metadata, shape, map(read_image, calibration_files(names[0])))


def average_precision(cfg: DictConfig, network: Network, name: str) -> float | None:
    """AP on the test data, in percent; None if the evaluation gives none."""
    cfg = copy.deepcopy(cfg)
    with tempfile.TemporaryDirectory() as folder, terminal_quiet():
        cfg.dataloader.evaluator.output_dir = folder
        return evaluate_network(cfg, network, name).get("bbox", {}).get("AP")


def runtimes_table(records: Mapping[str, Record]) -> str:
    """A table with a line for each runtime; "of PyTorch" are ratios to PyTorch in float32."""
    first = records[FIRST]
    rows = [
        [
            name,
            f"{1e3 * record['ours']['median_s']:.4g} ± {1e3 * record['ours']['iqr_s']:.2g} ms",
            record["ours"]["median_s"] / first["ours"]["median_s"],
            f"{1e3 * record['processor_s']:.4g} ms",
            record["processor_s"] / first["processor_s"],
            f"{record['bytes'] / 1e6:.1f} MB",
            record["AP"],
        ]
        for name, record in records.items()
    ]
    heads = ["", "time", "of PyTorch", "processor time", "of PyTorch", "size", "AP"]
    return tabulate(rows, heads, floatfmt=".2f")
