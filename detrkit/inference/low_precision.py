"""ONNX graphs with smaller types of numbers: float16, and int8 by ONNX Runtime's static quantisation."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .graph import EXTRA

if TYPE_CHECKING:
    from onnx import ModelProto

# Modules that compute in float16. Heads, sampling locations, reference points, position embeddings, proposals and the
# choice of the best stay in float32: their errors move boxes, and change which queries are chosen.
HALF_MODULES = re.compile(r"/(backbone|neck|input_proj|ffns\.\d+|value_proj|output_proj|out_proj|attn)/")
# Convolutions of the backbone and the products of the feed-forward blocks: most of the operations of a detector.
INT8_NODES = re.compile(r"/backbone/.*/Conv|/ffns\.\d+/.*/(Gemm|MatMul)")


def to_float16(graph: ModelProto) -> ModelProto:
    """Return a graph whose large modules (HALF_MODULES) compute in float16. Input and outputs stay float32.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise ImportError(f"float16 needs a package, onnxruntime: {EXTRA}") from error
    in_float32 = [node.name for node in graph.graph.node if not HALF_MODULES.search(node.name)]
    with _quiet():
        converted = convert_float_to_float16(graph, keep_io_types=True, node_block_list=in_float32)
    return _without_detours(converted)


def _without_detours(graph: ModelProto) -> ModelProto:
    """Connect nodes in float32 directly, in place: the converter rounds every value between them to float16."""
    from onnx import TensorProto

    def casts(kind: int) -> dict[str, str]:
        """Input of each cast to a type, by output."""
        return {
            node.output[0]: node.input[0]
            for node in graph.graph.node
            if node.op_type == "Cast" and node.attribute[0].i == kind
        }

    rounded = casts(TensorProto.FLOAT16)
    originals = {back: rounded[half] for back, half in casts(TensorProto.FLOAT).items() if half in rounded}
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            # A cast to float32 that is an output of the graph stays, and reads the original too.
            name = node.output[0] if node.output[0] in originals else name
            while name in originals:
                name = originals[name]
            node.input[index] = name
    for unneeded in (originals, rounded):
        used = {name for node in graph.graph.node for name in node.input} | {out.name for out in graph.graph.output}
        kept = [node for node in graph.graph.node if node.output[0] not in unneeded or node.output[0] in used]
        del graph.graph.node[:]
        graph.graph.node.extend(kept)
    return graph


def to_int8(graph: ModelProto, images: Iterable[np.ndarray]) -> ModelProto:
    """Return a graph whose backbone and feed-forward blocks compute in int8; weights have a scale for each channel.

    Args:
        images: calibration inputs (N, 3, H, W) float32. The range of each activation is the one seen on them.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: the graph has nothing to quantise.
    """
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    except ImportError as error:
        raise ImportError(f"int8 needs a package, onnxruntime: {EXTRA}") from error
    import onnx

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._images: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._images, None)
            return None if batch is None else {"images": batch}

    nodes = [node.name for node in graph.graph.node if INT8_NODES.search(node.name)]
    if not nodes:
        raise ValueError("precision=int8: this detector has no convolutions or feed-forward blocks to quantise")
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(graph, source)
        quantize_static(
            source,
            target,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with QInt8 weights: the types of the CPU's instructions (VNNI)
            weight_type=QuantType.QInt8,
        )
        quantised = onnx.load(target)
    onnx.helper.set_model_props(quantised, metadata)
    return quantised


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the advice of ONNX Runtime's tools, which log to the root logger, from the user's terminal."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
