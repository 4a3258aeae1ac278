"""The running program: the words that started it, and how it treats subnormal numbers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def program() -> list[str]:
    """The words that started this program: `align-detr` and a command, or `python` and a file."""
    name = sys.argv[0]
    return name.split() if name.startswith("align-detr ") else ["python", name]


@contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Treat numbers below 1e-38 as zero, in this thread and the threads that it starts.

    A CPU computes with them many times more slowly, and trained attention has many of them: without this a step of
    DAB-DETR takes twice as long after a thousand iterations.
    """
    import torch  # seconds; `program` does not need it

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
