"""The lock of an output folder: two trainings that write to one folder would damage each other's files."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from detectron2.utils import comm

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK = "training.lock"  # in the output folder; names the process
BUSY = (errno.EACCES, errno.EAGAIN)

_held: dict[Path, int] = {}  # the thread of this process that has locked a folder


@contextmanager
def output_folder_locked(folder: str | os.PathLike) -> Iterator[None]:
    """Lock an output folder inside the block. Every process of a run calls it; the main process holds the lock.

    The system releases the lock when the process ends, however it ends. Where folders cannot be locked, nothing is
    locked. A thread may lock a folder again that it has locked. The folder is created, and removed if it stays empty.

    Raises:
        ValueError: another training has locked the folder; in all processes.
    """
    path = Path(folder)
    file: BinaryIO | None = None
    key = path.resolve()
    is_first = comm.is_main_process() and _held.get(key) != threading.get_ident()
    problem, is_new = "", not path.exists()
    if is_first:
        try:
            file = _lock(path, key)
        except ValueError as error:
            problem = str(error)
    if problem := comm.all_gather(problem)[0]:
        raise ValueError(problem)
    try:
        yield
    finally:
        if is_first:
            _held.pop(key, None)
        if file is not None:
            with suppress(OSError):  # the folder may be gone, or read-only
                (path / LOCK).unlink(missing_ok=True)
            file.close()
            if is_new:
                with suppress(OSError):  # it is not empty
                    path.rmdir()


def _lock(folder: Path, key: Path) -> BinaryIO | None:
    """Lock a folder; return the open file that holds the lock, or None if folders cannot be locked here."""
    if key in _held:
        raise ValueError(_in_use(folder, f"process {os.getpid()}, which is this one"))
    _held[key] = threading.get_ident()
    if fcntl is None:
        return None
    file = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = (folder / LOCK).open("a+b")
            # Not `flock`, whose locks data workers inherit: they may outlive a killed training by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(file, folder / LOCK):
                break
            file.close()  # its owner deleted it while it was opened here
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
    except OSError as error:
        if file is not None and error.errno in BUSY:
            file.seek(0)
            owner = file.read(200).decode(errors="replace") or "another process"
            _held.pop(key)
            file.close()
            raise ValueError(_in_use(folder, owner)) from error
        logger.debug("%s is not locked: %s", folder, error)  # a folder that cannot be written to is reported elsewhere
    return file


def _is_current(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _in_use(folder: Path, owner: str) -> str:
    return (
        f"{folder} is in use by the training of {owner}: wait for its end, stop it, or train elsewhere with "
        "train.output_dir=FOLDER"
    )
