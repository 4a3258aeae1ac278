"""The Triton kernels of deformable attention: run on a GPU or in the interpreter, and compiled for real GPUs."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.engine("the engine's own kernels")

pytest.importorskip("triton", reason="Triton is not installed")


def test_kernels():
    """Every check of `deform_attn_triton_cases.py` passes, on the GPU or, without one, in the interpreter."""
    cases = Path(__file__).with_name("deform_attn_triton_cases.py")
    environment = dict(os.environ) if torch.cuda.is_available() else {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_for_gpus(capability, kind, index):
    """The kernels compile for A100 and H100 without register spilling. (The interpreter accepts more code.)"""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    if "TRITON_INTERPRET" in os.environ or not hasattr(backends, "GPUTarget"):
        pytest.skip("Triton interprets, or is too old to compile for absent GPUs")
    kernels = importlib.import_module("detrex.layers._deform_attn_triton")
    value = torch.empty(1, 10, 8, 32, dtype={"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[kind])
    constants = kernels._constants(value, torch.empty(1, 1, 8, 4, 4, 2), 0)
    constants["INDEX"] = getattr(kernels.tl, index)
    of_value = {"value", "output", "grad_output"}
    for kernel in (kernels._forward_kernel, kernels._backward_kernel):
        signature, aligned = {}, {}
        for position, name in enumerate(kernel.arg_names):
            if name in constants:
                signature[name] = "constexpr"
            elif name in {"bags", "samples", "cells", "queries"}:
                signature[name] = "i32"
            else:
                signature[name] = f"*{kind}" if name in of_value else "*i64" if name == "shapes" else "*fp32"
                aligned[position,] = [["tt.divisibility", 16]]
        source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = compiler.compile(source, target=backends.GPUTarget("cuda", capability, 32))
        assembly = compiled.asm["ptx"]
        assert "ld.global.v4" in assembly
        assert ".local" not in assembly
