"""Checks that all implementations of deformable attention make."""

from collections.abc import Sequence

from torch import Tensor


def check_cells(value: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise ValueError unless the levels of (height, width) in `sizes` make up dimension 1 of `value`."""
    cells = sum(h * w for h, w in sizes)
    if value.shape[1] != cells:
        raise ValueError(f"value has {value.shape[1]} cells, but the levels {list(sizes)} have {cells}")
