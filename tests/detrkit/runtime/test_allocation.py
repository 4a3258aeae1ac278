"""Memory that a command frees stays with its process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Page faults of the second of two buffers of 64 MiB.
PROGRAM = """
import resource, sys
sys.path[:0] = sys.argv[1:]
from detrkit.runtime.allocation import keep_freed_memory
assert keep_freed_memory()
bytearray(1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# 256 MiB of buffers, each too small for a mapping of its own; one in sixty-four stays. Prints MiB of the process.
GAPS = """
import ctypes, sys
sys.path[:0] = sys.argv[1:]
from detrkit.runtime.allocation import resident_bytes, return_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
buffers = [libc.malloc(1 << 16) for _ in range(4096)]
for buffer in buffers:
    ctypes.memset(buffer, 1, 1 << 16)
for number, buffer in enumerate(buffers):
    if number % 64:
        libc.free(ctypes.c_void_p(buffer))
before = resident_bytes()
assert return_freed_memory()
print((before - resident_bytes()) >> 20)
"""
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told to")


def output_of(program):
    command = [sys.executable, "-c", program, str(ROOT), str(ROOT / "projects")]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@needs_glibc
def test_a_freed_buffer_is_used_again():
    assert output_of(PROGRAM) < 10


@needs_glibc
def test_gaps_between_buffers_in_use_are_returned():
    assert output_of(GAPS) > 200
