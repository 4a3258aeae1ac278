"""What the commands have in common: configs with overrides, devices, and errors in one line."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.utils import comm
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch.multiprocessing import ProcessExitedException

from detrkit.runtime.logs import log_traceback

CONFIG_ERRORS = (OmegaConfBaseException, HydraException)
INPUT_ERRORS = (ValueError, OSError, FloatingPointError, Image.DecompressionBombError)
USER_ERRORS = (*INPUT_ERRORS, torch.cuda.OutOfMemoryError, *CONFIG_ERRORS)
# What PyTorch and detrex say of them does not help the person who could mend them.
EXPLAINED = {
    "selected index k out of range": "this image has fewer feature positions than the model has queries, or the model "
    "fewer scores (queries times classes) than model.select_box_nums_for_evaluation: larger images, or fewer of them",
    "this id does not exist in 'categories'": "an annotation of this dataset names a category that its file does not "
    "list: mend the file's categories or that annotation",
    "Cannot import 'detrex._C'": "the installed detrex lacks its compiled operators: build them as its documentation "
    "says, or set ALIGN_DETR_PLATFORM=embedded to run without it",
}
OVERRIDE = re.compile(r"[+~]{0,2}[\w.]+=")
SECONDS_FOR_RANK_0 = 5


def parse_arguments(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    """What `parser.parse_args` gives, but with options behind the first `key=value` understood too.

    Args:
        parser: the `key=value` are its `opts`, which take all that is left.
        words: the command line's by default.
    """
    args, overrides = argparse.Namespace(), []
    rest = list(sys.argv[1:] if words is None else words)
    while True:
        parser.parse_args(rest, args)
        # The first of them was none to the parser, whatever it begins with.
        option = next((n for n, word in enumerate(args.opts) if n and word.startswith("-")), len(args.opts))
        overrides += args.opts[:option]
        rest = args.opts[option:]
        if not rest:
            args.opts = overrides
            return args


def take_overrides(words: list[str], overrides: list[str]) -> None:
    """Move the `key=value` among `words` to `overrides`: an option that takes any number of words takes those behind it
    too. A file of that name stays."""
    found = [word for word in words if OVERRIDE.match(word) and not Path(word).exists()]
    overrides += found
    words[:] = [word for word in words if word not in found]


@contextmanager
def interrupts_end(advice: str = "") -> Iterator[None]:
    """Ctrl-C inside the block ends the program with the exit status that shells know it by, after a line of advice."""
    try:
        yield
    except KeyboardInterrupt:
        if advice:
            print(advice, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def finish(work: Callable[[], bool], advice: str = "") -> None:
    """Do the work and end the program: with exit status 1 if it did not all succeed, with one line of error, or, on
    Ctrl-C, of advice."""
    with errors_in_one_line(), interrupts_end(advice):
        complete = work()
    sys.exit(0 if complete else 1)


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
    except USER_ERRORS as error:
        log_traceback()
        # What every process runs into is for the first to tell; the launcher then ends the others as they wait here.
        if int(os.environ.get("RANK", comm.get_rank())) > 0:
            time.sleep(SECONDS_FOR_RANK_0)
        print(f"error: {_one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(1)
    except ProcessExitedException as error:  # a process that was started here; it has said why, unless it was killed
        if error.signal_name:
            print(f"error: {_one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(1)
    except Exception as error:
        log_traceback()
        explanation = next((text for said, text in EXPLAINED.items() if said in str(error)), None)
        if "DataLoader worker" in str(error):  # PyTorch has no class of its own for one that is gone
            advice = "if memory ran out: fewer dataloader.train.num_workers, or smaller batches"
            explanation = f"{_one_line(error)} ({advice})"
        if explanation is None:
            raise
        print(f"error: {explanation}", file=sys.stderr, flush=True)
        sys.exit(1)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught ") and len(lines) > 1:  # a data loader's worker: its traceback is the message
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(" ".join(lines).split())


def _log_thread(problem: threading.ExceptHookArgs) -> None:
    """What ends a thread, such as one that writes for TensorBoard, the main thread will come to as well."""
    log_traceback(problem.exc_value)
