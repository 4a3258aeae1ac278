"""Multi-scale deformable attention: formula, gradients, module, threads, errors and compilation."""

import importlib.util
import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from detrex.layers import MultiScaleDeformableAttention, multi_scale_deformable_attn_pytorch
from detrex.layers import multi_scale_deform_attn as deform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

pytestmark = pytest.mark.engine("an operator chosen by device, with shared-out heads; detrex has a compiled one")

attention = deform.multi_scale_deformable_attn

_path = Path(__file__).parents[2] / "reference" / "deform_attn.py"
_spec = importlib.util.spec_from_file_location("reference_deform_attn", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
reference = _module.reference_deform_attn

IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", [attention, multi_scale_deformable_attn_pytorch], ids=["by_device", "pytorch"]
)


def random_case(sizes, batch=2, queries=7, heads=3, channels=5, points=2, dtype=torch.float32):
    """value, shapes, locations and weights; locations reach a quarter of the map beyond each of its edges."""
    shapes = torch.tensor(sizes)
    value = torch.randn(batch, int(shapes.prod(1).sum()), heads, channels, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(sizes), points, 2, dtype=dtype) * 1.5 - 0.25
    weights = torch.randn(batch, queries, heads, len(sizes) * points, dtype=dtype).softmax(-1)
    return value, shapes, locations, weights.view(locations.shape[:-1])


def point_by_point(value, shapes, locations, weights):
    """The definition as loops: a cell (x, y) has its centre at (x + 0.5, y + 0.5) / (w, h)."""
    batch, queries, heads, levels, points, _ = locations.shape
    output = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    starts = [0, *itertools.accumulate(h * w for h, w in shapes.tolist())]
    for b, q, k, level, p in itertools.product(*map(range, locations.shape[:-1])):
        height, width = shapes[level].tolist()
        px, py = (locations[b, q, k, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for x, y in itertools.product((math.floor(px), math.floor(px) + 1), (math.floor(py), math.floor(py) + 1)):
            if 0 <= x < width and 0 <= y < height:
                share = (1 - abs(px - x)) * (1 - abs(py - y)) * weights[b, q, k, level, p]
                output[b, q, k] += share * value[b, starts[level] + y * width + x, k]
    return output.flatten(2)


def run_with_gradients(function, value, shapes, locations, weights, grad_output):
    leaves = [x.detach().clone().requires_grad_() for x in (value, locations, weights)]
    output = function(leaves[0], shapes, *leaves[1:])
    return output.detach(), torch.autograd.grad(output, leaves, grad_output)


@IMPLEMENTATIONS
def test_recorded_numbers(golden, implementation):
    """Output and all three gradients are those of the operator that published models were trained with."""
    case = golden("ms_deform_attn_core")
    arguments = [case.input[k] for k in ("value", "spatial_shapes", "sampling_locations", "attention_weights")]
    output, gradients = run_with_gradients(implementation, *arguments, case.input["grad_output"])
    torch.testing.assert_close(output, case.output["out"], rtol=2e-4, atol=1e-6)
    names = ("grad_value", "grad_sampling_locations", "grad_attention_weights")
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(gradient, case.output[name], rtol=5e-4, atol=1e-5)


@IMPLEMENTATIONS
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    batch=st.integers(1, 2),
    queries=st.integers(1, 3),
    heads=st.integers(1, 3),
    channels=st.integers(1, 3),
    points=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_is_the_definition(implementation, sizes, batch, queries, heads, channels, points, seed):
    """Any number of levels, heads and points, maps of a single cell and points outside: bilinear, zero-padded."""
    torch.manual_seed(seed)
    case = random_case(sizes, batch, queries, heads, channels, points, torch.float64)
    torch.testing.assert_close(implementation(*case), point_by_point(*case))


def test_gradients_are_the_slopes():
    """All three gradients agree with finite differences, outside the map and at its edge too."""
    torch.manual_seed(0)
    value, shapes, locations, weights = random_case([(3, 4), (1, 1)], queries=3, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    assert gradcheck(lambda v, x, w: attention(v, shapes, x, w), leaves)


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request):
    """Set PyTorch's number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("block", [1, 400, 1 << 20])
def test_equals_the_plain_way_however_heads_are_shared_out(monkeypatch, threads, block):
    """The size of the blocks and the number of threads do not change the results."""
    monkeypatch.setattr(deform._kernels("cpu"), "BLOCK_SAMPLES", block)
    torch.manual_seed(0)
    case = random_case([(9, 14), (5, 7), (3, 4)], queries=13, heads=8, channels=16, points=4)
    grad = torch.randn(2, 13, 128)
    output, gradients = run_with_gradients(attention, *case, grad)
    expected, expected_gradients = run_with_gradients(reference, *case, grad)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_number_of_threads_is_left_alone(threads):
    """The operator does not change PyTorch's number of threads for threads that start later."""
    attention(*random_case([(3, 4)]))
    with ThreadPoolExecutor() as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == threads


def test_arguments_are_left_alone():
    """The operator does not change its arguments, whatever their memory layout."""
    torch.manual_seed(0)
    value, shapes, locations, weights = random_case([(3, 4)], batch=1, heads=1, points=1)
    copies = [x.clone() for x in (value, locations, weights)]
    run_with_gradients(attention, value, shapes, locations, weights, torch.ones(1, 7, 5))
    for tensor, copy in zip((value, locations, weights), copies, strict=True):
        assert torch.equal(tensor, copy)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values(implementation, dtype):
    """Half-precision values are summed in float32: one rounding separates output and gradients from float32's."""
    torch.manual_seed(0)
    value, shapes, locations, weights = random_case([(9, 14), (5, 7)])
    grad = torch.randn(2, 7, 15).to(dtype)
    low, low_gradients = run_with_gradients(implementation, value.to(dtype), shapes, locations, weights, grad)
    exact, gradients = run_with_gradients(reference, value.to(dtype).float(), shapes, locations, weights, grad.float())
    assert low.dtype == low_gradients[0].dtype == dtype
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(low.float(), exact, rtol=tolerance, atol=1e-5)
    torch.testing.assert_close(low_gradients[0].float(), gradients[0], rtol=tolerance, atol=1e-5)
    for gradient, expected in zip(low_gradients[1:], gradients[1:], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_runaway_locations():
    """Points far outside read zero, NaN affects only its own query, and nothing accesses foreign memory."""
    torch.manual_seed(0)
    value, shapes, locations, weights = random_case([(3, 4), (1, 1)], queries=4)
    locations[:, 0] = 1e30
    locations[:, 1] = -1e30
    locations[:, 2] = math.nan
    output, gradients = run_with_gradients(attention, value, shapes, locations, weights, torch.ones(2, 4, 15))
    assert (output[:, :2] == 0).all()
    assert output[:, 2].isnan().all()
    torch.testing.assert_close(output[:, 3:], reference(value, shapes, locations[:, 3:], weights[:, 3:]))
    assert (gradients[1][:, :2] == 0).all() and gradients[1][:, 3].isfinite().all()


def test_no_queries():
    """A batch without queries gives an empty output and zero gradients."""
    value, shapes, locations, weights = random_case([(3, 4)], queries=0)
    output, gradients = run_with_gradients(attention, value, shapes, locations, weights, torch.zeros(2, 0, 15))
    assert output.shape == (2, 0, 15)
    assert (gradients[0] == 0).all()


def test_saves_only_its_arguments():
    """Only the inputs are saved for the backward pass."""
    value, shapes, locations, weights = random_case([(9, 14), (5, 7)])
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    allowed = {x.data_ptr() for x in (*leaves, shapes)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()) or x, lambda x: x):
        attention(leaves[0], shapes, *leaves[1:])
    assert saved and set(saved) <= allowed


def test_shapes_as_pairs_of_ints():
    """Shapes may be Python ints, which need no copy from a device."""
    value, shapes, locations, weights = random_case([(3, 4), (2, 1)])
    expected = attention(value, shapes, locations, weights)
    assert torch.equal(attention(value, [(3, 4), (2, 1)], locations, weights), expected)
    module = MultiScaleDeformableAttention(6, 2, 2, 1, dropout=0.0, batch_first=True)
    query, points = torch.randn(2, 5, 6), torch.rand(2, 5, 2, 2)
    outputs = [
        module(query, value=torch.ones(2, 14, 6), reference_points=points, spatial_shapes=given)
        for given in (shapes, ((3, 4), (2, 1)))
    ]
    assert torch.equal(*outputs)


def test_wrong_shapes_are_named():
    """Levels and maps that do not agree give an error of one line."""
    value, shapes, locations, weights = random_case([(3, 4), (2, 1)])
    with pytest.raises(ValueError, match="spatial_shapes has 1 levels, sampling_locations 2"):
        attention(value, shapes[:1], locations, weights)
    for wrong in (torch.tensor([(3, 4), (2, 2)]), [(3, 4), (2, 2)]):
        with pytest.raises(ValueError, match="14 cells, but the levels .* have 16"):
            attention(value, wrong, locations, weights)
    with pytest.raises(ValueError, match="embed_dim .10. must be divisible by num_heads .4."):
        MultiScaleDeformableAttention(10, 4)
    module = MultiScaleDeformableAttention(6, 2, 2, 1, batch_first=True)
    with pytest.raises(ValueError, match="needs reference_points and spatial_shapes"):
        module(torch.randn(2, 5, 6), value=torch.ones(2, 14, 6))
    with pytest.raises(ValueError, match="2 .points. or 4 .boxes., got 3"):
        module(
            torch.randn(2, 5, 6),
            value=torch.ones(2, 14, 6),
            reference_points=torch.rand(2, 5, 2, 3),
            spatial_shapes=shapes,
        )


def test_initial_attention():
    """Before training, every head samples 1 … P cells along its own direction with equal weights."""
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    offsets = module.sampling_offsets.bias.view(4, 2, 3, 2)
    directions = torch.tensor([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])
    expected = directions[:, None, None] * torch.tensor([1.0, 2.0, 3.0])[:, None]
    torch.testing.assert_close(offsets, expected.expand(-1, 2, -1, -1), atol=1e-6, rtol=0)
    diagonal = MultiScaleDeformableAttention(32, num_heads=8).sampling_offsets.bias.view(8, 4, 4, 2)[1, 0]
    torch.testing.assert_close(diagonal, torch.arange(1.0, 5.0)[:, None].expand(-1, 2))
    assert not module.sampling_offsets.weight.any() and not module.attention_weights.weight.any()


def module_and_inputs(**overrides):
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(12, 3, 2, 2, batch_first=True, **overrides)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.5)
    torch.nn.init.normal_(module.attention_weights.weight)
    inputs = {
        "query": torch.randn(2, 5, 12),
        "value": torch.randn(2, 14, 12),
        "reference_points": torch.rand(2, 5, 2, 4),
        "spatial_shapes": torch.tensor([(3, 4), (2, 1)]),
    }
    return module, inputs


@pytest.mark.parametrize("levels", [2, 1], ids=["per_level", "shared_by_levels"])
@pytest.mark.parametrize("width", [2, 4], ids=["points", "boxes"])
def test_sampling_locations(width, levels):
    """Sampling locations and the gradients of the offsets equal the broadcast formula bit for bit."""
    module, inputs = module_and_inputs()
    shapes, points = inputs["spatial_shapes"], torch.rand(2, 5, levels, width).requires_grad_()
    offsets = torch.randn(2, 5, 3 * 2 * 2 * 2).requires_grad_()
    places, steps = points[:, :, None, :, None], offsets.view(2, 5, 3, 2, 2, 2)
    if width == 2:
        expected = torch.addcdiv(places, steps, shapes.flip(-1)[:, None].float())
    else:
        expected = torch.addcmul(places[..., :2], steps, places[..., 2:], value=0.5 / 2)
    locations = module._locations(offsets, points, shapes)
    assert torch.equal(locations, expected)
    upstream = torch.randn_like(expected)
    ours, wanted = (torch.autograd.grad(x, (offsets, points), upstream) for x in (locations, expected))
    assert torch.equal(ours[0], wanted[0])
    torch.testing.assert_close(ours[1], wanted[1])  # sums of another order


def test_padding_is_not_read():
    """Values in padding have no influence, even if they are not finite."""
    module, inputs = module_and_inputs(dropout=0.0)
    mask = torch.zeros(2, 14, dtype=torch.bool)
    mask[1, 5:] = True
    expected = module(**inputs, key_padding_mask=mask)
    inputs["value"] = inputs["value"].masked_fill(mask[..., None], math.inf)
    assert torch.equal(module(**inputs, key_padding_mask=mask), expected)
    assert not torch.allclose(module(**{**inputs, "value": torch.ones(2, 14, 12)})[1], expected[1])


def test_residual_and_dropout():
    """`identity`, by default the query without its position, is added after dropout."""
    module, inputs = module_and_inputs(dropout=1.0)
    position, identity = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    assert torch.equal(module(**inputs, query_pos=position), inputs["query"])
    assert torch.equal(module(**inputs, identity=identity), identity)
    module.eval()
    gain = module(**inputs, identity=torch.zeros(2, 5, 12))
    torch.testing.assert_close(module(**inputs), inputs["query"] + gain)


def test_autocast():
    """bfloat16 autocast trains: output near float32's, every parameter with a finite gradient."""
    module, inputs = module_and_inputs(dropout=0.0)
    expected = module(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(**inputs)
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    output.float().square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="needs torch >= 2.4")
def test_compiles_in_one_graph():
    """`torch.compile(fullgraph=True)` works and does not change output and gradients."""
    module, inputs = module_and_inputs(dropout=0.0)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (module, compiled):
        module.zero_grad()
        output = call(**inputs)
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in module.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="needs torch >= 2.4")
def test_operator_registration():
    """Schema, fake kernel and autograd formula of the operator agree with what it does."""
    value, shapes, locations, weights = random_case([(3, 4), (2, 1)])
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    torch.library.opcheck(deform._deform_attn, (leaves[0], shapes, *leaves[1:]))
    strided = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in (value, locations, weights)]
    arguments = (torch.randn(2, 7, 15), strided[0], shapes, *strided[1:])
    torch.library.opcheck(deform._deform_attn_backward, arguments, test_utils=("test_schema", "test_faketensor"))


def test_cuda_without_triton_says_so_once(monkeypatch, caplog):
    """Without Triton the PyTorch formula runs, with one line in the log and no error."""
    monkeypatch.setitem(sys.modules, "detrex.layers._deform_attn_triton", None)
    monkeypatch.delattr(sys.modules["detrex.layers"], "_deform_attn_triton", raising=False)
    deform._kernels.cache_clear()
    try:
        assert [deform._has_kernels("cuda") for _ in range(2)] == [False, False]
    finally:
        deform._kernels.cache_clear()
    assert len(caplog.records) == 1
    assert "runs in PyTorch" in caplog.text
