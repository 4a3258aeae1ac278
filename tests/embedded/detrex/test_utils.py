"""Numerical helpers."""

import torch
from detrex.utils import get_world_size, interpolate, inverse_sigmoid, is_dist_avail_and_initialized


def test_inverse_sigmoid_matches_recording(golden):
    """Values inside [0, 1], at its ends and outside."""
    case = golden("inverse_sigmoid")
    torch.testing.assert_close(inverse_sigmoid(case.input["x"], **case.config), case.output["y"], rtol=2e-4, atol=1e-6)


def test_inverse_sigmoid_inverts():
    """Sigmoid and its inverse cancel, so that refined anchors do not drift."""
    x = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)


def test_one_process_needs_no_process_group():
    """Without a process group the world size is one."""
    assert not is_dist_avail_and_initialized()
    assert get_world_size() == 1


def test_interpolate():
    """Masks are resized by nearest-neighbour interpolation."""
    mask = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    assert (
        interpolate(mask, size=(4, 4))[0, 0].tolist()
        == mask[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1).tolist()
    )
