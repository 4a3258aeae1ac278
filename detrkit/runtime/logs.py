"""The loggers of a run: their handlers on the terminal, and tracebacks in the log file."""

import io
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")


def log_traceback(error: BaseException | None = None) -> None:
    """Write the traceback of an error to the log files, not to the terminal.

    Args:
        error: None for the error that is being handled.
    """
    lines = "".join(traceback.format_exception(error or sys.exc_info()[1]))
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "stopped by an error\n%s", (lines,), None)
    for handler in logging.getLogger("detectron2").handlers:
        if getattr(handler, "stream", None) not in (None, sys.stdout, sys.stderr):
            handler.handle(record)


def terminal_handlers() -> list[logging.Handler]:
    """The handlers of `LOGGERS` that write to the terminal."""
    handlers = {handler for name in LOGGERS for handler in logging.getLogger(name).handlers}
    return [handler for handler in handlers if getattr(handler, "stream", None) in (sys.stdout, sys.stderr)]


@contextmanager
def terminal_quiet() -> Iterator[None]:
    """Keep messages of `LOGGERS` inside the block out of the terminal; log files have them.

    Warnings, and progress with its time left, still reach the terminal. What is printed becomes a message.
    """
    handlers = terminal_handlers()
    for handler in handlers:
        handler.addFilter(_is_important)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logging.getLogger("detectron2").info(line)
        for handler in handlers:
            handler.removeFilter(_is_important)


def _is_important(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or "ETA" in record.getMessage()
