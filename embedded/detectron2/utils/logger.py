"""Console and file logging, one file per process."""

from __future__ import annotations

import logging
import sys
from functools import cache
from pathlib import Path

from termcolor import colored

_TIME = "%m/%d %H:%M:%S"
_PLAIN = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"


class _ConsoleFormatter(logging.Formatter):
    """Time and logger in green, warnings and errors named in red; logger names shortened by `abbreviations`."""

    def __init__(self, name: str, abbrev_name: str, color: bool):
        super().__init__(datefmt=_TIME)
        self._name, self._abbrev, self._color = name, abbrev_name, color

    def _paint(self, text: str, color: str) -> str:
        return colored(text, color, force_color=True) if self._color else text

    def format(self, record: logging.LogRecord) -> str:
        name = record.name
        if name == self._name or name.startswith(f"{self._name}."):
            name = self._abbrev + name[len(self._name) :]
        head = self._paint(f"[{self.formatTime(record, self.datefmt)} {name}]:", "green")
        if record.levelno >= logging.WARNING:
            head += " " + self._paint(f"{record.levelname}:", "red")
        text = f"{head} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


@cache
def _file_handler(path: str) -> logging.Handler:
    """The one handler that writes to `path`, for every logger that does."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(_PLAIN, datefmt=_TIME))
    return handler


def _log_file(output: str, rank: int) -> str:
    path = Path(output)
    if path.suffix not in (".txt", ".log"):
        path = path / "log.txt"
    path = path.resolve()
    return str(path if rank == 0 else path.with_name(f"{path.name}.rank{rank}"))


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Send the logger `name` and those below it to the console and to a file.

    Args:
        output: a folder, which gets `log.txt`, or a file ending in `.txt` or `.log`; None writes no file.
            Process N > 0 writes to the same name with the suffix `.rankN`, and nothing to the console.
        distributed_rank: the number of this process.
        color: colours on the console, if it is a terminal.
        abbrev_name: what the console shows for `name`; by default `d2` for detectron2, else `name` itself.
        enable_propagation: pass records to the parents of this logger.
        configure_stdout: write to the console.

    A second call adds missing handlers, and no duplicates.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name

    has_console = any(isinstance(h.formatter, _ConsoleFormatter) for h in logger.handlers)
    if configure_stdout and distributed_rank == 0 and not has_console:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(_ConsoleFormatter(name, abbrev_name, color and sys.stdout.isatty()))
        console.setLevel(logging.INFO)
        logger.addHandler(console)
    if output is not None:
        logger.addHandler(_file_handler(_log_file(output, distributed_rank)))
    return logger
