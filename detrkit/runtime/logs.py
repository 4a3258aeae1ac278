"""The loggers whose messages belong to a run, and errors in its log file."""

import logging
import sys
import traceback

LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")


def log_traceback(error: BaseException | None = None) -> None:
    """Write the traceback of an error, by default the one that is handled, to the log files; not to the terminal."""
    lines = "".join(traceback.format_exception(error or sys.exc_info()[1]))
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "stopped by an error\n%s", (lines,), None)
    for handler in logging.getLogger("detectron2").handlers:
        if getattr(handler, "stream", None) not in (None, sys.stdout, sys.stderr):
            handler.handle(record)
