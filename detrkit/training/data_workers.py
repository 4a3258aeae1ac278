"""Data workers: they share memory, ignore SIGTERM, and the death of a worker raises at one place."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

PARENT_SECONDS = 2.0  # between two checks that the parent is alive


def preload_workers() -> None:
    """Let Python's fork server import what data workers need, once for all of them.

    The fork server starts the workers by default since Python 3.14, and with `multiprocessing_context="forkserver"`.
    Otherwise each worker would import PyTorch by itself, which takes seconds and 160 MB. If it is the default, it
    starts now and imports while this process continues.
    """
    methods = multiprocessing.get_all_start_methods()  # the default comes first
    if "forkserver" not in methods:
        return
    multiprocessing.set_forkserver_preload(["__main__", f"{__package__}.worker_server"])
    if (multiprocessing.get_start_method(allow_none=True) or methods[0]) == "forkserver":
        from multiprocessing.forkserver import ensure_running  # not on Windows

        ensure_running()


def prepare_worker(worker_id: int = 0) -> None:
    """In a data worker: keep sharing memory with the parent, and leave signals to it.

    Args:
        worker_id: unused; DataLoader passes it to a `worker_init_fn`.
    """
    gc.freeze()  # a garbage collection writes to every object, and so copies the memory pages shared with the parent
    leave_signals_to_parent()


def leave_signals_to_parent() -> None:
    """In a data worker: ignore SIGINT and SIGTERM unless the parent sent it, and end when the parent ends.

    A scheduler or a terminal sends a signal to all processes of a run at once. The training then finishes its iteration
    and saves a checkpoint, for which it needs its workers. On macOS, which does not name the sender, SIGTERM ends a
    worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # the thread takes it
        threading.Thread(target=_obey_parent, daemon=True, name="signals").start()


def _obey_parent() -> None:
    process = multiprocessing.parent_process()
    parent, started_by = process.pid if process else os.getppid(), os.getppid()
    while os.getppid() == started_by:
        info = signal.sigtimedwait([signal.SIGTERM], PARENT_SECONDS)
        if info is not None and info.si_pid == parent:
            break
    os._exit(0)


def protect_workers(loader: Any) -> Any:
    """Make the workers of a DataLoader share memory with this process and leave signals to it.

    Args:
        loader: a DataLoader, or one in detectron2's AspectRatioGroupedDataset; other types are returned unchanged.

    Returns:
        `loader`.
    """
    for part in (loader, getattr(loader, "dataset", None)):
        if isinstance(part, DataLoader) and part.num_workers > 0:
            part.worker_init_fn = _Both(prepare_worker, part.worker_init_fn)
    return loader


class _Both:
    """Call two `worker_init_fn`; the second may be None. It is a class, so that spawned workers can unpickle it."""

    def __init__(self, first: Callable[[int], Any], second: Callable[[int], Any] | None):
        self._first, self._second = first, second

    def __call__(self, worker_id: int) -> None:
        self._first(worker_id)
        if self._second is not None:
            self._second(worker_id)


def is_worker_death(error: BaseException) -> bool:
    """Whether an error is PyTorch's report that a data worker died."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def next_batch(batches: Iterator[Any]) -> Any:
    """Return `next(batches)`. The death of a data worker raises here, and not between two calls.

    PyTorch raises where the main thread is when SIGCHLD arrives, for example between the updates of two parameters.

    Raises:
        RuntimeError: a worker died, now or since the last call; `is_worker_death` holds.
    """
    if threading.current_thread() is not threading.main_thread():  # PyTorch sets no signal handler there
        return next(batches)
    with _deaths_raised():
        return next(batches)


_pytorch_handler: Any = None  # of SIGCHLD; PyTorch sets it once in a process, with its first worker


@contextmanager
def _deaths_raised() -> Iterator[None]:
    global _pytorch_handler
    try:
        if _pytorch_handler is not None:
            signal.signal(signal.SIGCHLD, _pytorch_handler)
            _pytorch_handler(signal.SIGCHLD, None)  # for a signal that came since
        yield
    finally:
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", None) == signal_handling.__name__:
            _pytorch_handler = handler
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def sigchld_restored() -> Iterator[None]:
    """Restore PyTorch's SIGCHLD handler on exit, which `next_batch` removes between two calls."""
    try:
        yield
    finally:
        if _pytorch_handler is not None and signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL:
            signal.signal(signal.SIGCHLD, _pytorch_handler)
