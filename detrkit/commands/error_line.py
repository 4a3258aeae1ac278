"""Errors of a command in one line."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

INPUT_ERRORS = (ValueError, OSError, FloatingPointError)
# Errors of libraries that the user can mend. A library that is not imported has raised none.
LIBRARY_ERRORS = (
    ("torch.cuda", "OutOfMemoryError"),
    ("hydra.errors", "HydraException"),
    ("omegaconf.errors", "OmegaConfBaseException"),
    ("PIL.Image", "DecompressionBombError"),
    ("mlflow.exceptions", "MlflowException"),
)
# The messages of PyTorch and detrex do not name what the user can change.
EXPLAINED = {
    "selected index k out of range": "this image has fewer feature positions than the model has queries, or the model "
    "fewer scores (queries times classes) than model.select_box_nums_for_evaluation: larger images, or fewer of them",
    "this id does not exist in 'categories'": "an annotation of this dataset names a category that its file does not "
    "list: mend the file's categories or that annotation",
    "Cannot import 'detrex._C'": "the installed detrex lacks its compiled operators: build them as its documentation "
    "says, or set ALIGN_DETR_PLATFORM=embedded to run without it",
}
# Arguments of the library's functions that commands have as options of the same name.
ARGUMENTS = ("batch", "calibration", "classes", "format", "output", "precision", "size", "which")
FLAGS = ("dynamic", "force")
SECONDS_FOR_RANK_0 = 15


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn errors of input and environment into `error: <one line>` on stderr and exit status 1.

    The traceback goes to the log file, if there is one by then.
    """
    # detectron2's trainer prints the traceback of whatever ends a training.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_traceback)
    threading.excepthook = _log_thread
    try:
        yield
    except BrokenPipeError:  # `| head` has seen enough; `main` ends quietly
        raise
    except Exception as error:
        from detrkit.runtime.logs import log_traceback

        log_traceback()
        if (message := _message_of(error)) is None:
            raise
        # Every process runs into the same error, and the first one reports it; the launcher ends the waiting others.
        if is_user_error(error) and _rank() > 0:
            time.sleep(SECONDS_FOR_RANK_0)
        if message:
            print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)


def is_user_error(error: BaseException) -> bool:
    """Whether the error is one of input or environment."""
    return isinstance(error, (*INPUT_ERRORS, *_imported(LIBRARY_ERRORS)))


def as_options(message: str) -> str:
    """Replace the names of arguments in a message of the library by those of options: `batch=2` by `--batch 2`."""
    message = re.sub(rf"(?<![\w.+?&-])({'|'.join(FLAGS)})=True\b", r"--\1", message)
    return re.sub(rf"(?<![\w.+?&-])({'|'.join(ARGUMENTS)})=", r"--\1 ", message).rstrip()


def _imported(names: Sequence[tuple[str, str]]) -> list[type]:
    return [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]


def _message_of(error: Exception) -> str | None:
    """The line to print; "" if it was printed by another process; None for an error that needs its traceback."""
    if is_user_error(error):
        return as_options(_one_line(error))
    exited = _imported([("torch.multiprocessing.spawn", "ProcessExitedException")])
    if isinstance(error, tuple(exited)):  # a process that was started here; it has said why, unless it was killed
        return _one_line(error) if error.signal_name else ""
    if "DataLoader worker" in str(error):  # PyTorch has no class for one that has died
        return f"{_one_line(error)} (if memory ran out: fewer dataloader.train.num_workers, or smaller batches)"
    return next((text for said, text in EXPLAINED.items() if said in str(error)), None)


def _rank() -> int:
    comm = sys.modules.get("detectron2.utils.comm")
    return int(os.environ.get("RANK", comm.get_rank() if comm else 0))


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught ") and len(lines) > 1:  # a data loader's worker: its traceback is the message
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(" ".join(lines).split())


def _log_thread(problem: threading.ExceptHookArgs) -> None:
    """Log what ends a thread, such as one that writes for TensorBoard: the main thread will meet the error as well."""
    from detrkit.runtime.logs import log_traceback

    log_traceback(problem.exc_value)
