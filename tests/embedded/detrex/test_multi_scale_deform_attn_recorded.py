"""Deformable attention against recorded numbers, by the names that detrex has too."""

import pytest
import torch
from detrex.layers import MultiScaleDeformableAttention, multi_scale_deformable_attn_pytorch


def test_recorded_formula(golden):
    """The plain formula gives the output that published models were trained with."""
    case = golden("ms_deform_attn_core")
    arguments = [case.input[k] for k in ("value", "spatial_shapes", "sampling_locations", "attention_weights")]
    output = multi_scale_deformable_attn_pytorch(*arguments)
    torch.testing.assert_close(output, case.output["out"], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ms_deform_attn_module_ref2", "ms_deform_attn_module_ref4"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recorded_module(golden, name, batch_first):
    """A published checkpoint loads and gives the recorded output, for points and for boxes, in either layout."""
    case = golden(name)
    module = MultiScaleDeformableAttention(**{**case.config, "batch_first": batch_first})
    module.load_state_dict(case.state)
    inputs = dict(case.input)
    if not batch_first:
        inputs.update({k: inputs[k].transpose(0, 1) for k in ("query", "value", "query_pos")})
    output = module(**inputs)
    output = output if batch_first else output.transpose(0, 1)
    torch.testing.assert_close(output, case.output["out"], rtol=2e-4, atol=1e-5)
