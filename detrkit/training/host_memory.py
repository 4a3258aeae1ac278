"""Memory of a training on the CPU."""

from __future__ import annotations

from detectron2.engine import HookBase

from detrkit.runtime.allocation import resident_bytes, return_freed_memory

GROWTH = 1.5
"""Freed memory is returned above this multiple of the memory that an iteration needs."""


class ReturnFreedMemory(HookBase):
    """Return freed memory to the system when the process has grown to `GROWTH` times what an iteration needs.

    Images of many sizes leave gaps between buffers, and the C library keeps these gaps. Without this hook the process
    grows for hundreds of iterations. An iteration needs the largest resident memory that was measured after the first
    iteration and after each iteration that follows a return. It does nothing on other systems than Linux with glibc.
    """

    def __init__(self) -> None:
        self._needed = 0
        self._measures_next = True

    def after_step(self) -> None:
        size = resident_bytes()
        if size is None:
            return
        if self._measures_next:
            self._needed = max(self._needed, size)
            self._measures_next = False
        elif size > GROWTH * self._needed:
            self._measures_next = return_freed_memory()
