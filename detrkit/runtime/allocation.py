"""Settings of the memory allocator of the process."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

# from malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Keep memory that this process frees, which glibc would return to the system.

    Each inference needs the same large buffers as the one before, and the system fills every page of new memory with
    zeros. The process keeps its peak size. A training gains nothing, as glibc keeps most of the memory that its
    backward pass frees.

    For commands only: a library must not change the allocator of the program that uses it.

    Returns:
        Whether the C library supports it.
    """
    library = _glibc()
    if library is None:
        return False
    malloc_option = library.mallopt
    return bool(malloc_option(M_MMAP_MAX, 0) and malloc_option(M_TRIM_THRESHOLD, -1))


def return_freed_memory() -> bool:
    """Return the free pages that the C library keeps to the system.

    Returns:
        Whether the C library supports it.
    """
    library = _glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    return True


@cache  # the version is read from the file of the interpreter
def _glibc() -> ctypes.CDLL | None:
    """C library of this process; None if it is another than glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def resident_bytes() -> int | None:
    """Resident memory of this process; None on other systems than Linux."""
    statm = Path("/proc/self/statm")
    return int(statm.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None
