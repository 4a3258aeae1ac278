"""Files that are replaced in one step, and names of files that several packages read."""

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

UNFINISHED = ".tmp"  # suffix of a file that is being written
LAST_CHECKPOINT = "last_checkpoint"  # in a run's folder; holds the name of its newest checkpoint


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends, and never if writing fails.

    Several processes and threads may write the same path; the last one to finish wins.

    Raises:
        OSError: it cannot be written; the message names `path` and the reason.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: PyTorch's writer, which hides the file's error
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        raise OSError(f"cannot write {path}: {reason}; files written before are as they were") from error
    finally:
        try:
            unfinished.unlink(missing_ok=True)
        except OSError:  # the folder is gone or read-only, as the first error says
            logger.debug("Could not delete %s", unfinished)


def write_if_changed(path: Path, content: bytes) -> None:
    """Write a file in one step, unless it has this content already. Its folder is created.

    Raises:
        OSError: as `atomic_write`.
    """
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)


def check_writable(folder: Path, name: str) -> None:
    """Write a temporary file into a folder, or into its nearest existing parent. No folder is created.

    Args:
        name: how the user gave the folder, for the message: a config key with "=", or an option with a space.

    Raises:
        OSError: this is not possible.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OSError(f"cannot write to {name}{folder}: {reason}; choose another folder") from error
