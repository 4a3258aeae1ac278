"""Checks of the Triton kernels of deformable attention; `test_multi_scale_deform_attn_triton.py` runs them.

In a process of its own: whether Triton interprets its kernels is settled when it is first imported.
"""

import math

import pytest
import torch
from detrex.layers import _deform_attn_triton as kernels
from detrex.layers import multi_scale_deformable_attn_pytorch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_case(sizes, batch, queries, heads, channels, points, dtype):
    shapes = torch.tensor(sizes)
    value = torch.randn(batch, int(shapes.prod(1).sum()), heads, channels).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    locations = torch.rand(batch, queries, heads, len(sizes), points, 2, dtype=wide) * 1.6 - 0.3
    weights = torch.randn(batch, queries, heads, len(sizes) * points, dtype=wide).softmax(-1)
    weights = weights.view(locations.shape[:-1])
    return [x.to(DEVICE) for x in (value, shapes, locations, weights)]


def plain(value, shapes, locations, weights, grad_output):
    """Output and gradients of the PyTorch formula, from the same inputs in float64."""
    leaves = [x.double().requires_grad_() for x in (value, locations, weights)]
    output = multi_scale_deformable_attn_pytorch(leaves[0], shapes.tolist(), *leaves[1:])
    return output.detach(), torch.autograd.grad(output, leaves, grad_output.double())


CASES = {
    "three levels, five points": ([(9, 7), (5, 4), (3, 2)], 2, 5, 4, 8, 5),
    "20 channels, a level of one cell": ([(6, 8), (3, 4), (1, 1)], 1, 5, 3, 20, 4),
    "one channel, one head, one point": ([(1, 1)], 1, 3, 1, 1, 1),
    "more channels than rows": ([(2, 3), (4, 1)], 2, 3, 1, 260, 2),
    "DINO's heads": ([(6, 8), (3, 4), (2, 2), (1, 1)], 1, 2, 8, 32, 4),
}


DTYPES = {name: [torch.float32, torch.bfloat16] for name in CASES}
DTYPES["three levels, five points"] += [torch.float16, torch.float64]


@pytest.mark.parametrize("name, dtype", [(name, dtype) for name in CASES for dtype in DTYPES[name]])
def test_equals_pytorch(name, dtype):
    """Output and all gradients, within one rounding of the value's dtype, points outside of the map included."""
    torch.manual_seed(0)
    _, batch, queries, heads, channels, _ = case = CASES[name]
    arguments = random_case(*case, dtype)
    grad = torch.randn(batch, queries, heads * channels, device=DEVICE).to(dtype)
    expected, expected_gradients = plain(*arguments, grad)
    output = kernels.forward(*arguments)
    gradients = kernels.backward(grad, *arguments)
    assert output.dtype == gradients[0].dtype == dtype
    rounding = max(torch.finfo(dtype).eps, 2e-6)
    torch.testing.assert_close(output.double(), expected, rtol=rounding, atol=rounding)
    torch.testing.assert_close(gradients[0].double(), expected_gradients[0], rtol=rounding, atol=rounding)
    for gradient, expected in zip(gradients[1:], expected_gradients[1:], strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_runaway_locations():
    """Points far outside read zero, NaN affects only its own query, and neither accesses foreign memory."""
    torch.manual_seed(0)
    value, shapes, locations, weights = random_case([(3, 4), (1, 1)], 1, 3, 2, 4, 2, torch.float32)
    locations[:, 0], locations[:, 1] = 1e30, math.nan
    output = kernels.forward(value, shapes, locations, weights)
    assert (output[:, 0] == 0).all()
    kept = multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations[:, 2:], weights[:, 2:])
    torch.testing.assert_close(output[:, 2:], kept)
    grad_value, grad_locations, _ = kernels.backward(torch.ones_like(output), value, shapes, locations, weights)
    assert grad_value.isfinite().all()
    assert (grad_locations[:, 0] == 0).all() and grad_locations[:, 2].isfinite().all()


def test_strided_arguments_and_no_queries():
    """Non-contiguous views are read correctly, and an empty set of queries launches no kernel."""
    torch.manual_seed(0)
    value, shapes, locations, weights = random_case([(3, 4)], 2, 3, 2, 4, 2, torch.float32)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    output = kernels.forward(strided, shapes, locations, weights)
    assert torch.equal(output, kernels.forward(value, shapes, locations, weights))
    grad = torch.ones(1, device=DEVICE).expand_as(output)
    for left, right in zip(
        kernels.backward(grad, strided, shapes, locations, weights),
        kernels.backward(grad.contiguous(), value, shapes, locations, weights),
        strict=True,
    ):
        torch.testing.assert_close(left, right)
    none = (value, shapes, locations[:, :0], weights[:, :0])
    assert kernels.forward(*none).shape == (2, 0, 8)
    assert not kernels.backward(output[:, :0], *none)[0].any()


def test_offsets_of_64_bits(monkeypatch):
    """Tensors beyond 2³¹ elements switch to wide offsets, with the same results."""
    torch.manual_seed(0)
    arguments = random_case([(3, 4), (2, 2)], 1, 3, 2, 4, 2, torch.float32)
    grad = torch.randn(1, 3, 8, device=DEVICE)
    narrow = [kernels.forward(*arguments), *kernels.backward(grad, *arguments)]
    constants = kernels._constants(*arguments[:3:2], 2**31)
    assert constants["INDEX"] is kernels.tl.int64
    monkeypatch.setattr(kernels, "_constants", lambda *_: constants)
    wide = [kernels.forward(*arguments), *kernels.backward(grad, *arguments)]
    torch.testing.assert_close(narrow, wide)
