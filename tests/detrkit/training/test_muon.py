"""Muon: its step beside the singular value decomposition, torch.optim's own optimizers, and an exact resume."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detrkit.config.load import load_config
from detrkit.training.muon import Muon, orthogonalize

spec = importlib.util.spec_from_file_location("sharded_runs", Path(__file__).with_name("test_sharding.py"))
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    count=st.integers(1, 3),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_singular_vectors_stay_and_values_move_towards_one(rows, columns, count, scale, seed):
    rng = torch.Generator().manual_seed(seed)
    matrices = torch.randn(count, rows, columns, generator=rng, dtype=torch.float64)
    result = orthogonalize(matrices * scale)
    for matrix, found in zip(matrices, result, strict=True):
        u, singular, v = torch.linalg.svd(matrix, full_matrices=False)
        in_basis = u.mT @ found @ v.mT
        values = in_basis.diagonal()
        torch.testing.assert_close(in_basis, values.diag(), atol=1e-9, rtol=0)
        clear = singular / singular.norm() > 0.01
        assert (values[clear] > 0.65).all() and (values < 1.25).all()


def test_zero_gradients_step_nothing():
    torch.testing.assert_close(orthogonalize(torch.zeros(2, 3, 5)), torch.zeros(2, 3, 5))


def small_model():
    torch.manual_seed(0)
    modules = {"conv": nn.Conv2d(8, 32, 3), "linear": nn.Linear(48, 32)}
    return nn.ModuleDict(modules | {"norm": nn.LayerNorm(32), "head": nn.Linear(32, 3)})


def set_gradients(model, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_all_but_matrices_take_the_step_of_adamw():
    ours, theirs = small_model(), small_model()
    optimizers = Muon(ours.parameters(), lr=1e-2), torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    for seed in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(model, seed)
            optimizer.step()
    for name, parameter in ours.named_parameters():
        is_equal = torch.equal(parameter, theirs.get_parameter(name))
        assert is_equal == (name not in ("conv.weight", "linear.weight")), name
    assert set(optimizers[0].state[ours["conv"].weight]) == {"momentum_buffer", "step"}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(32, 48), (64, 32), (40, 40)])
def test_linear_layers_take_the_step_of_pytorchs_own(shape):
    """PyTorch's iterates in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = copy.deepcopy(ours)
    options = dict(lr=0.1, weight_decay=0.1)
    optimizers = Muon([ours], **options), torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        before = ours.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        step = (ours - before).norm()
        assert (ours - theirs).norm() < 0.03 * step
        theirs.data.copy_(ours)


@pytest.mark.parametrize("shape", [(32, 6, 3, 3), (96, 4, 3, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_steps_as_the_matrix_of_its_weight(shape, layout):
    """Wide and tall matrices, in both orders of memory."""
    torch.manual_seed(0)
    convolution = nn.Parameter(torch.randn(shape).to(memory_format=layout))
    matrix = nn.Parameter(convolution.detach().flatten(1).clone())
    gradient = torch.randn(shape)
    for parameter in convolution, matrix:
        parameter.grad = gradient.flatten(1) if parameter is matrix else gradient.to(memory_format=layout)
        before = parameter.detach().clone()
        Muon([parameter], lr=0.1).step()
        assert not torch.equal(parameter, before)
    torch.testing.assert_close(convolution.flatten(1), matrix)


def test_gradients_stay_and_may_be_missing():
    model = small_model()
    set_gradients(model, 0)
    model["linear"].weight.grad = None
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    kept = model["linear"].weight.detach().clone()
    optimizer = Muon(model.parameters())
    assert optimizer.step(lambda: 3.0) == 3.0
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(before)
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in before.items())
    assert torch.equal(model["linear"].weight, kept)


def test_a_loaded_state_goes_on_exactly(tmp_path):
    models = small_model(), small_model()
    first = Muon(models[0].parameters(), lr=1e-2)
    for seed in range(2):
        set_gradients(models[0], seed)
        first.step()
    torch.save({"optimizer": first.state_dict(), "model": models[0].state_dict()}, tmp_path / "state.pth")
    saved = torch.load(tmp_path / "state.pth", weights_only=True)
    models[1].load_state_dict(saved["model"])
    second = Muon(models[1].parameters(), lr=1.0)
    second.load_state_dict(saved["optimizer"])
    for model, optimizer in zip(models, (first, second), strict=True):
        set_gradients(model, 2)
        optimizer.step()
    assert all(torch.equal(value, models[1].state_dict()[name]) for name, value in models[0].state_dict().items())


def test_a_group_has_its_own_rate_and_decay():
    """The rate of a group scales the step of its matrices; a rate of 0 keeps them."""
    one, two = (nn.Parameter(torch.ones(32, 32)) for _ in range(2))
    optimizer = Muon([{"params": [one], "lr": 0.0}, {"params": [two], "weight_decay": 0.5}], lr=0.1, weight_decay=0)
    for parameter in one, two:
        parameter.grad = torch.zeros(32, 32)
    optimizer.step()
    assert torch.equal(one, torch.ones(32, 32))
    torch.testing.assert_close(two, torch.full((32, 32), 0.95))


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_named(momentum):
    with pytest.raises(ValueError, match=rf"momentum is {momentum}, but must be at least 0 and below 1"):
        Muon([nn.Parameter(torch.zeros(2))], momentum=momentum)


def test_the_demo_trains_with_it():
    for name in "align_detr_demo", "dino_demo":
        assert load_config(name).optimizer["_target_"] in (Muon, "detrkit.training.muon.Muon")


@pytest.mark.slow
def test_a_training_resumes_exactly_and_may_be_sharded(tmp_path):
    """Resumed after three of six iterations, and in two processes. The toy's matrix has one row."""
    options = ["optimizer._target_=detrkit.training.muon.Muon", "+optimizer.min_size=1", "optimizer.lr=0.01"]
    plain = runs.run(tmp_path / "plain", *options, processes=1)
    states = runs.weights(tmp_path / "plain")["optimizer"]["state"]
    assert any("momentum_buffer" in state for state in states.values())
    expected = runs.weights(tmp_path / "plain")["model"]
    (tmp_path / "plain/model_final.pth").unlink()
    (tmp_path / "plain/last_checkpoint").write_text("model_0000002.pth")
    assert runs.run(tmp_path / "plain", *options, processes=1, resume=True) == plain
    found = runs.weights(tmp_path / "plain")["model"]
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    two = runs.run(tmp_path / "two", *options)
    assert runs.run(tmp_path / "sharded", *options, "train.shard_optimizer=True") == pytest.approx(two)
    expected, found = (runs.weights(tmp_path / name)["model"] for name in ("two", "sharded"))
    torch.testing.assert_close(found, expected)
