"""When a training on the CPU returns freed memory."""

import pytest

from detrkit.training import host_memory


def returns_after(sizes, monkeypatch):
    """Iterations, from 0, after which memory is returned, for sizes of the process after each."""
    hook, returned = host_memory.ReturnFreedMemory(), []
    for iteration, size in enumerate(sizes):
        monkeypatch.setattr(host_memory, "resident_bytes", lambda size=size: size)
        monkeypatch.setattr(host_memory, "return_freed_memory", lambda i=iteration: returned.append(i) or True)
        hook.after_step()
    return returned


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100, 130, 150, 149], []),  # within a half
        ([100, 151, 100, 151], [1, 3]),  # grown again after the first iteration with returned memory
        ([100, 151, 140, 160, 211], [1, 4]),  # a larger batch needs 140
        ([100, 151, 80, 151], [1, 3]),  # a smaller one does not lower the bound
        ([None, None, None], []),
    ],
)
def test_memory_is_returned_when_the_process_has_grown_by_a_half(sizes, expected, monkeypatch):
    assert returns_after(sizes, monkeypatch) == expected
