"""Input checks for all implementations of deformable attention."""

from collections.abc import Sequence

from torch import Tensor


def check_cells(value: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise ValueError unless dimension 1 of `value` is the sum of height · width over the levels in `sizes`."""
    cells = sum(h * w for h, w in sizes)
    if value.shape[1] != cells:
        raise ValueError(f"value has {value.shape[1]} cells, but the levels {list(sizes)} have {cells}")
