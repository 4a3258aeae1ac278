"""A name of NumPy that the package lvis needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def numpy_float() -> Iterator[None]:
    """Provide `numpy.float` in the block. lvis 0.5.3, which detectron2's `LVISEvaluator` calls, uses it; NumPy 1.24
    removed it."""
    is_missing = "float" not in vars(np)
    if is_missing:
        np.float = float
    try:
        yield
    finally:
        if is_missing:
            del np.float
