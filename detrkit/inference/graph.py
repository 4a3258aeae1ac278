"""Detectors as functions of tensors alone, which can be traced, and their files: ONNX and torch.export's `.pt2`."""

from __future__ import annotations

import copy
import io
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from detrex.layers import MultiScaleDeformableAttention, box_cxcywh_to_xyxy
from torch import Tensor, nn

from align_detr._platform import is_upstream
from detrkit.config.exported import CLASSES, INPUT, InputSize
from detrkit.config.load import call_parameters
from detrkit.datasets.classes import Classes
from detrkit.runtime.extras import pip_install
from detrkit.runtime.files import atomic_write

from .float64 import IN_OTHER_OPERATORS, Float64

if TYPE_CHECKING:
    from onnx import ModelProto

OUTPUTS = ("boxes", "scores", "classes")
OPSET = 17  # the first with layer norms; grid_sample came one before
OPSET_FLOAT64 = 20  # the first whose grid_sample ONNX Runtime has in float64
EXTRA, OPENVINO_EXTRA = pip_install("onnx"), pip_install("openvino")


class Shape(NamedTuple):
    """Of the images that a graph takes; None: any.

    Attributes:
        batch: images at once.
        size: their height and width in pixels.
    """

    batch: int | None
    size: tuple[int, int] | None


class GridSampleAttention(nn.Module):
    """`MultiScaleDeformableAttention` in operators that other runtimes have, at inference and batch first.

    Args:
        attention: whose weights it shares.
        shapes: (height, width) of each level, filled in before each call; a graph for images of any size has to
            compute them from the image's, which it cannot where they come as a tensor.
    """

    def __init__(self, attention: MultiScaleDeformableAttention, shapes: list[tuple[int, int]]):
        super().__init__()
        if not attention.batch_first:
            raise ValueError("deformable attention with batch_first=False cannot be exported")
        self.attention = attention
        self.shapes = shapes

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As `MultiScaleDeformableAttention.forward`; there is no padding."""
        part = self.attention
        heads, levels, points = part.num_heads, part.num_levels, part.num_points
        identity = query if identity is None else identity
        values = part.value_proj(query if value is None else value)
        query = query if query_pos is None else query + query_pos

        # Levels come first and queries last: a level is one block of memory, and the sum over points adds whole rows.
        offsets = part.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2)).permute(3, 0, 2, 4, 1, 5)
        weights = part.attention_weights(query).unflatten(-1, (heads, levels * points)).softmax(-1)
        weights = weights.unflatten(-1, (levels, points)).permute(3, 0, 2, 4, 1).flatten(1, 2)  # (L, B·H, P, Lq)
        grids = self._grids(offsets, reference_points.permute(2, 0, 1, 3)[:, :, None, None])
        output, start = 0, 0
        for level, (height, width) in enumerate(self.shapes):
            map_ = values[:, start : start + height * width].unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)
            start = start + height * width
            map_ = map_.flatten(0, 1).unflatten(-1, (height, width))
            sampled = F.grid_sample(map_, grids[level].flatten(0, 1), align_corners=False)  # (B·H, D, P, Lq)
            output = output + (sampled * weights[level][:, None]).sum(2)
        output = output.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)
        return identity + part.output_proj(output)

    def _grids(self, offsets: Tensor, reference: Tensor) -> Tensor:
        """Return the locations (L, B, H, P, Lq, 2) that `grid_sample` takes, from -1 to 1 over the map.

        Args:
            offsets: (L, B, H, P, Lq, 2) in cells, or in shares of the reference boxes.
            reference: (L, B, 1, 1, Lq, 2 or 4), points or boxes cxcywh in [0, 1].
        """
        if reference.shape[-1] == 2:
            one = offsets.new_ones(())
            cells = torch.stack([torch.stack([one * width, one * height]) for height, width in self.shapes])
            unit = 2 / cells[:, None, None, None, None]
        else:
            unit = reference[..., 2:] / self.attention.num_points
        return offsets * unit + (2 * reference[..., :2] - 1)


class DetectorGraph(nn.Module):
    """A detector of the engine, from images to boxes.

    Its own steps are taken, but for reading a batch of dictionaries and for making instances, which are Python.

    Args:
        model: DINO, H-Deformable-DETR, DAB-DETR or Conditional DETR, or one built on these; left as it is. One in
            float64 is called under `Float64`.

    Raises:
        ValueError: detectron2 or detrex are installed ones: their modules keep Python numbers of one image's size.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if is_upstream():
            raise ValueError(
                "detrex's own modules cannot be exported; the engine's are the same model: set "
                "ALIGN_DETR_PLATFORM=embedded, as `align-detr export` does"
            )
        self.model = copy.deepcopy(model).eval()
        shapes: list[tuple[int, int]] = []
        for module in list(self.model.modules()):
            for name, part in list(module.named_children()):
                if isinstance(part, MultiScaleDeformableAttention):
                    setattr(module, name, GridSampleAttention(part, shapes))
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_pre_hook(_without_padding, with_kwargs=True)

        def note_shapes(module: nn.Module, arguments: tuple) -> None:
            if isinstance(arguments[0], Sequence):  # the levels' maps; other transformers have one
                shapes[:] = [tuple(level.shape[-2:]) for level in arguments[0]]

        self.model.transformer.register_forward_pre_hook(note_shapes)
        self.model.preprocess_image = self._normalised
        self.model.detect = lambda outputs, images, inputs: outputs

    def _normalised(self, images: Tensor) -> ImageList:
        size = tuple(images.shape[-2:])  # of each image; as many sizes as images would fix their number
        return ImageList((images - self.model.pixel_mean) / self.model.pixel_std, [size])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections, best first.

        Args:
            images: (B, 3, H, W) float32 from 0 to 255, in the channel order that the model was trained with.

        Returns:
            Boxes (B, K, 4) xyxy in pixels of the images, scores (B, K) in [0, 1] and classes (B, K) int64.
        """
        outputs = self.model(images)
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        count = logits.shape[-1]
        scores, flat = logits.sigmoid().flatten(1).topk(self.model.select_box_nums_for_evaluation)
        queries = flat.div(count, rounding_mode="floor")
        corners = box_cxcywh_to_xyxy(boxes.gather(1, queries[..., None].expand(-1, -1, 4)))
        height, width = (corners.new_ones(()) * extent for extent in images.shape[-2:])
        corners = corners * torch.stack([width, height, width, height])
        return corners.to(images.dtype), scores.to(images.dtype), flat - queries * count


def _without_padding(module: nn.Module, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """All images of a batch have its size."""
    return arguments, {**options, "key_padding_mask": None}


def metadata_of(
    classes: Classes, size: InputSize, shape: Shape, channel_order: str, options: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Metadata of a file: names of classes, size of its images, and `test_options` that are not part of the graph."""
    given = {"height": shape.size[0], "width": shape.size[1]} if shape.size else size._asdict()
    return {
        CLASSES: json.dumps(classes.plain(), ensure_ascii=False),
        INPUT: json.dumps({**given, "channel_order": channel_order, **(options or {})}),
    }


def write_onnx(
    model: nn.Module, path: Path, metadata: Mapping[str, str], shape: Shape, example: tuple[int, int]
) -> None:
    """Write a detector's graph as ONNX; whole or not at all. See `trace_onnx`.

    Raises:
        ImportError: the package onnx is not there.
        OSError: the file cannot be written.
    """
    write_bytes(path, trace_onnx(model, metadata, shape, example).SerializeToString())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in a folder that may have to be made; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)


def trace_onnx(
    model: nn.Module, metadata: Mapping[str, str], shape: Shape, example: tuple[int, int]
) -> ModelProto:
    """Return a detector's graph as ONNX.

    By tracing: torch.export takes twenty times as long for the same graph, and is not in PyTorch 2.1.

    Args:
        model: see `DetectorGraph`; in float32 or float64.
        example: height and width to trace it with where they are free; enough for the model's queries.

    Raises:
        ImportError: the package onnx is not there.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"an ONNX graph needs a package, onnx: {EXTRA}") from error
    free = {axis: name for axis, name in {0: "batch", 2: "height", 3: "width"}.items() if axis in _free(shape)}
    traced = io.BytesIO()
    by_tracing = {"dynamo": False} if "dynamo" in call_parameters(torch.onnx.export) else {}
    is_float64 = next(model.parameters()).dtype == torch.float64
    with warnings.catch_warnings(), torch.no_grad(), Float64(IN_OTHER_OPERATORS) if is_float64 else nullcontext():
        warnings.simplefilter("ignore")  # of numbers that tracing keeps, and of its age
        torch.onnx.export(
            DetectorGraph(model),
            (_images(shape, example),),
            traced,
            opset_version=OPSET_FLOAT64 if is_float64 else OPSET,
            input_names=["images"],
            output_names=list(OUTPUTS),
            dynamic_axes={"images": free, **{name: {0: "batch"} for name in OUTPUTS if 0 in free}},
            **by_tracing,
        )
    graph = onnx.load_from_string(traced.getvalue())
    onnx.helper.set_model_props(graph, dict(metadata))
    return graph


def write_openvino(graph: ModelProto, path: Path, *, half: bool = False) -> None:
    """Write an ONNX graph in OpenVINO's format: `path` (.xml) and the weights beside it (.bin).

    Args:
        half: store the weights in float16. OpenVINO computes in the type that it is opened with.

    Raises:
        ImportError: the package openvino is not there.
        OSError: the files cannot be written.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"{path} needs a package, openvino: {OPENVINO_EXTRA}") from error
    with tempfile.TemporaryDirectory() as folder:
        traced, written = Path(folder, "traced.onnx"), Path(folder, "written.xml")
        traced.write_bytes(graph.SerializeToString())
        openvino.save_model(openvino.Core().read_model(traced), written, compress_to_fp16=half)
        write_bytes(path.with_suffix(".bin"), written.with_suffix(".bin").read_bytes())
        write_bytes(path, written.read_bytes())


def write_program(
    model: nn.Module, path: Path, metadata: Mapping[str, str], shape: Shape, example: tuple[int, int]
) -> None:
    """As `write_onnx`, for `torch.export.load`, with the metadata as extra files."""
    dynamic = dict.fromkeys(_free(shape), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(
            DetectorGraph(model),
            (_images(shape, example),),
            dynamic_shapes=(dynamic,) if dynamic else None,
            strict=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.export.save(program, file, extra_files=dict(metadata))


def _free(shape: Shape) -> list[int]:
    """The dimensions of the images that may have any size."""
    return ([] if shape.batch else [0]) + ([] if shape.size else [2, 3])


def _images(shape: Shape, example: tuple[int, int]) -> Tensor:
    return torch.rand(shape.batch or 2, 3, *(shape.size or example)) * 255
