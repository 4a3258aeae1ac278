"""Count a detector's parameters, multiply-adds and activations, module by module, for one image of a given size.

One FLOP is one multiply-add, as in the papers' tables, of inference on one image without padding:

    convolution, linear layer, matrix product    one per weight and output position
    attention                                    Lq·Lk·(width of keys + width of values), over heads and batch
    deformable attention                         5·Lq·heads·levels·points·width of a head: bilinear interpolation of
                                                 four cells and one weight (Deformable DETR, arXiv 2010.04159, A.1)
    batch norm; group and layer norm             2; 5 per value, which is fvcore's count

Other elementwise arithmetic, softmax and sorting are not counted. Activations are the values that the operators of the
first two lines put out. Everything runs on the CPU, with random weights.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import (
    addmm_flop_jit,
    bmm_flop_jit,
    conv_flop_jit,
    einsum_flop_jit,
    get_shape,
    linear_flop_jit,
    matmul_flop_jit,
)
from tabulate import tabulate
from torch import Tensor, nn

ACTIVATIONS = "activations"  # among the names of operators in fvcore's counters
DEFORMABLE = "deformable attention"
PER_SAMPLE = 5  # multiply-adds of a value that deformable attention reads: four cells, and the attention weight
Values = list[Any]  # of a traced graph


class Inference(nn.Module):
    """Inference on one image (3, H, W), as a function of tensors that can be traced."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = map(int, image.shape[-2:])
        found = self.model([{"image": image, "height": height, "width": width}])[0]["instances"]
        return found.pred_boxes.tensor, found.scores, found.pred_classes


def attention_flops(inputs: Values, outputs: Values) -> int:
    """Of `scaled_dot_product_attention`, query (…, Lq, D), key (…, Lk, D), value (…, Lk, D')."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def deformable_attention_flops(inputs: Values, outputs: Values) -> int:
    """Of an operator of value (B, S, H, D), …, attention weights (B, Lq, H, L, P): the last input with 5 dimensions."""
    shapes = [shape for tensor in inputs if (shape := get_shape(tensor))]
    channels = shapes[0][-1]
    weights = [shape for shape in shapes if len(shape) == 5][-1]
    return PER_SAMPLE * prod(weights) * channels


def sampling_flops(inputs: Values, outputs: Values) -> int:
    """Of `grid_sample`, by which deformable attention in plain PyTorch reads its values."""
    return PER_SAMPLE * prod(get_shape(outputs[0]))


OPERATORS: dict[str, tuple[str, Callable[[Values, Values], int | Counter]]] = {
    "aten::_convolution": ("conv", conv_flop_jit),
    "aten::linear": ("linear", linear_flop_jit),
    "aten::addmm": ("linear", addmm_flop_jit),
    "aten::matmul": ("matmul", matmul_flop_jit),
    "aten::mm": ("matmul", matmul_flop_jit),
    "aten::bmm": ("matmul", bmm_flop_jit),
    "aten::einsum": ("matmul", einsum_flop_jit),
    "aten::scaled_dot_product_attention": ("attention", attention_flops),
    "aten::grid_sampler": (DEFORMABLE, sampling_flops),
    "detrex::deform_attn": (DEFORMABLE, deformable_attention_flops),
    "prim::PythonOp._DeformAttn": (DEFORMABLE, deformable_attention_flops),
}


def handle(name: str, flops: Callable[[Values, Values], int | Counter]) -> Callable[[Values, Values], Counter]:
    """Counts an operator's FLOPs under `name`, and its activations."""

    def count(inputs: Values, outputs: Values) -> Counter:
        counted = flops(inputs, outputs)
        counts = Counter({name: sum(counted.values()) if isinstance(counted, Counter) else counted})
        if name != DEFORMABLE:  # its sampled values are there or not, as it is implemented
            counts[ACTIVATIONS] = prod(get_shape(outputs[0]))
        return counts

    return count


def count_operators(model: nn.Module, size: tuple[int, int]) -> tuple[dict[str, Counter], Counter]:
    """Run `model` on an image of `size` (width, height).

    Returns:
        By the names of the model's modules, "" for all of it: FLOPs by operator, and `ACTIVATIONS`. And the operators
        without a count, with how often they ran.
    """
    width, height = size
    analysis = FlopCountAnalysis(Inference(model), (torch.zeros(3, height, width),))
    analysis.set_op_handle(**{op: handle(*counted) for op, counted in OPERATORS.items()})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_module = analysis.by_module_and_operator()
    inner = {name.removeprefix("model").removeprefix("."): counts for name, counts in by_module.items() if name}
    return inner, analysis.unsupported_ops()


def module_table(model: nn.Module, counts: dict[str, Counter], tasks: Sequence[str], depth: int) -> str:
    """What each module has and does, down to `depth` names; those that neither have nor do anything are left out."""
    all_flops = flops_of(counts.get("", Counter()))
    rows = []
    for name, module in model.named_modules():
        level = len(name.split(".")) if name else 0
        parameters = sum(parameter.numel() for parameter in module.parameters())
        counted = counts.get(name, Counter())
        if level > depth or not (parameters or counted):
            continue
        row = [name or type(model).__name__]
        if "parameter" in tasks:
            trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
            row += [f"{parameters / 1e6:.3f} M", f"{trained / 1e6:.3f} M"]
        if "flop" in tasks:
            flops = flops_of(counted)
            row += [f"{flops / 1e9:.3f} G", f"{flops / all_flops:.1%}"]
        if "activation" in tasks:
            row += [f"{counted[ACTIVATIONS] / 1e6:.3f} M"]
        rows.append(row)
    headers = ["module"]
    headers += ["parameters", "trained"] * ("parameter" in tasks)
    headers += ["FLOPs", "share"] * ("flop" in tasks)
    headers += ["activations"] * ("activation" in tasks)
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, colalign=align, disable_numparse=True)


def flops_of(counts: Counter) -> int:
    return counts.total() - counts[ACTIVATIONS]


def operator_table(counts: Counter, uncounted: Counter) -> str:
    """FLOPs by operator, most first, and what has none."""
    rows = [[name, f"{flops / 1e9:.3f} G"] for name, flops in counts.most_common() if name != ACTIVATIONS]
    rows.append(["all", f"{flops_of(counts) / 1e9:.3f} G"])
    names = ", ".join(name.partition("::")[2] or name for name, _ in uncounted.most_common())
    table = tabulate(rows, ["operator", "FLOPs"], colalign=("left", "right"), disable_numparse=True)
    return f"{table}\nnot counted: {names}"


def tables(model: nn.Module, title: str, *, size: tuple[int, int], tasks: Sequence[str], depth: int) -> str:
    """Return tables about a model, which is on the CPU and in evaluation mode.

    Args:
        title: the model's name.
        size: (width, height) of the image in pixels.
        tasks: of "parameter", "flop", "activation", "structure".
        depth: levels of modules in the table.
    """
    parts = [str(model)] if "structure" in tasks else []
    counts: dict[str, Counter] = {}
    if {"flop", "activation"} & set(tasks):
        counts, uncounted = count_operators(model, size)
        parts.append(f"{title}, one image of {size[0]}×{size[1]}")
    if set(tasks) - {"structure"}:
        parts.append(module_table(model, counts, tasks, depth))
    if "flop" in tasks:
        parts.append(operator_table(counts[""], uncounted))
    return "\n\n".join(parts)
