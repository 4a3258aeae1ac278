"""How the process asks the system for memory."""

from __future__ import annotations

import ctypes
import platform

# of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Keep memory that this process frees, which glibc would return to the system.

    An inference asks for the same large buffers as the one before. The system hands out a buffer page by page, each
    filled with zeros. The process stays as large as it was at its largest. A training gains nothing: glibc keeps
    most of what its backward pass frees.

    For commands only. The allocator of a program that uses this project as a library is that program's own.

    Returns:
        Whether this C library can do so.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    malloc_option = ctypes.CDLL(None).mallopt
    return bool(malloc_option(M_MMAP_MAX, 0) and malloc_option(M_TRIM_THRESHOLD, -1))
