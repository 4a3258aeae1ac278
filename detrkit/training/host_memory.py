"""Memory of a training on the CPU."""

from __future__ import annotations

from detectron2.engine import HookBase

from detrkit.runtime.allocation import resident_bytes, return_freed_memory

GROWTH = 1.5
"""Memory of the process, as a multiple of what an iteration needs, from which freed memory is returned."""


class ReturnFreedMemory(HookBase):
    """Return freed memory to the system whenever the process has grown beyond what an iteration needs.

    Images of many sizes leave gaps between buffers, which the C library keeps. So the process would grow to a multiple
    within some hundred iterations. What an iteration needs is measured after the first one, and after each that follows
    a return; it is the most of these. Does nothing on other systems than Linux with glibc.
    """

    def __init__(self) -> None:
        self._needed = 0
        self._starts_afresh = True

    def after_step(self) -> None:
        size = resident_bytes()
        if size is None:
            return
        if self._starts_afresh:
            self._needed = max(self._needed, size)
            self._starts_afresh = False
        elif size > GROWTH * self._needed:
            self._starts_afresh = return_freed_memory()
