"""Memory that is freed: kept by a process that needs it again, and returned by one that has grown."""

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told to")
def test_a_freed_buffer_is_used_again():
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(ROOT / "projects")]
    pages = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert pages < 10


# Every tenth of 4000 buffers stays, so the memory of the others is in gaps.
GAPS = """
import sys
sys.path[:0] = sys.argv[1:]
from detrkit.runtime.allocation import resident_bytes, return_freed_memory
buffers = [bytes([1]) * 50_000 for _ in range(4000)]
buffers = buffers[::10]
before = resident_bytes()
assert return_freed_memory()
print((before - resident_bytes()) // 1_000_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told to")
def test_gaps_between_buffers_are_returned():
    command = [sys.executable, "-c", GAPS, str(ROOT), str(ROOT / "projects")]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) > 100
