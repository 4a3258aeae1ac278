"""How the process asks the system for memory."""

from __future__ import annotations

import ctypes
import platform

# of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """From now on, what this process frees it keeps for the next that it needs, where glibc would hand it back.

    An inference asks for the same large buffers as the one before, and a buffer that comes from the system comes page
    by page, each filled with zeros first. The process stays as large as it once was. A training gains nothing, as glibc
    keeps most of what its backward pass frees by itself.

    Returns:
        Whether this C library can do so.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    malloc_option = ctypes.CDLL(None).mallopt
    return bool(malloc_option(M_MMAP_MAX, 0) and malloc_option(M_TRIM_THRESHOLD, -1))
