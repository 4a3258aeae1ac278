"""The Triton kernels of deformable attention: run on a GPU or in the interpreter, and compiled for real GPUs."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.engine("the engine's own kernels")

pytest.importorskip("triton", reason="Triton is not installed")

# Registers per thread, of 65,536 in a multiprocessor. More of them would leave fewer programs in flight.
MOST_REGISTERS = {"_forward_kernel": {80: 80, 90: 80, 100: 80}, "_backward_kernel": {80: 160, 90: 80, 100: 80}}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def test_kernels():
    """Every check of `deform_attn_triton_cases.py` passes, on the GPU or, without one, in the interpreter."""
    cases = Path(__file__).with_name("deform_attn_triton_cases.py")
    environment = dict(os.environ) if torch.cuda.is_available() else {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]


def compile_kernel(name, capability, kind, channels, index="int32"):
    """Compile a kernel for 8 heads, 4 levels and 4 points, with pointers as the launcher finds them in PyTorch."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    if "TRITON_INTERPRET" in os.environ or not hasattr(backends, "GPUTarget"):
        pytest.skip("Triton interprets, or is too old to compile for absent GPUs")
    kernels = importlib.import_module("detrex.layers._deform_attn_triton")
    kernel = getattr(kernels, name)
    value = torch.empty(1, 10, 8, channels, dtype=TYPES[kind])
    constants = kernels._constants(value, torch.empty(1, 1, 8, 4, 4, 2), 0)
    constants["INDEX"] = getattr(kernels.tl, index)
    signature, aligned = {}, {}
    for position, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in {"bags", "samples", "cells", "queries"}:
            signature[argument] = "i32"
        else:
            of_value = argument in {"value", "output", "grad_output"}
            signature[argument] = f"*{kind}" if of_value else "*i64" if argument == "shapes" else "*fp32"
            aligned[position,] = [["tt.divisibility", 16]]
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return compiler.compile(source, target=backends.GPUTarget("cuda", capability, 32))


def resources(compiled, folder):
    """(registers per thread, bytes of spilled registers per thread)."""
    nvidia = pytest.importorskip("triton.backends.nvidia")
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    done = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout).groups()
    return int(registers), int(stack)


def check_compiled(name, capability, kind, channels, folder, index="int32"):
    compiled = compile_kernel(name, capability, kind, channels, index)
    assembly = compiled.asm["ptx"]
    assert f".target sm_{capability}" in assembly
    assert "ld.global.v4" in assembly  # 16 bytes
    assert ("red.global.gpu.relaxed.add.v4.f32" in assembly) == (name == "_backward_kernel" and capability >= 90)
    registers, spilled = resources(compiled, folder)
    assert registers <= MOST_REGISTERS[name][capability] and spilled <= 8


@pytest.mark.parametrize("name", MOST_REGISTERS)
@pytest.mark.parametrize("capability, kind", [(80, "fp32"), (100, "bf16")])
def test_compiles_for_gpus(name, capability, kind, tmp_path):
    """With 16-byte loads, atomics of four where the GPU has them, few registers and next to no spilling."""
    check_compiled(name, capability, kind, 32, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST_REGISTERS)
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("channels, index", [(32, "int32"), (32, "int64"), (16, "int32"), (64, "int32")])
def test_compiles_for_gpus_in_all_types_and_sizes(name, capability, kind, channels, index, tmp_path):
    """A100, H100 and B200; the interpreter accepts more code than the compiler."""
    check_compiled(name, capability, kind, channels, tmp_path, index)
