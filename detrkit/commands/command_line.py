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
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch.multiprocessing import ProcessExitedException

from detrkit.config.load import call_parameters, load_config_file

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
TARGET = "_target_"
OVERRIDE = re.compile(r"[+~]{0,2}[\w.]+=")
SECONDS_FOR_RANK_0 = 5


def load_config(path: str, overrides: list[str]) -> DictConfig:
    """The config at `path`, or of that name, with overrides.

    Such as `train.max_iter=100`, `model.criterion.k=3`, `+new.key=1`.

    Raises:
        ValueError: an override that does not parse, has a key that the config does not have, or a value that cannot
            stand where the old one did.
        FileNotFoundError: no such config.
    """
    return _overridden(load_config_file(path), overrides)


def load_configs(paths: Sequence[str], overrides: list[str]) -> list[DictConfig]:
    """The configs at `paths`, for looking at models side by side: each override goes to all that have its key.

    Raises:
        As `load_config`; an override that fits none of the configs is refused in the words of the first.
    """
    configs = [load_config_file(path) for path in paths]
    fitting = [[override for override in overrides if _fits(cfg, override)] for cfg in configs]
    stray = [override for override in overrides if not any(override in fits for fits in fitting)]
    fitting[0] += stray
    return [_overridden(cfg, fits) for cfg, fits in zip(configs, fitting, strict=True)]


def _overridden(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    for override in overrides:
        _check_override(cfg, override)
    try:
        return LazyConfig.apply_overrides(cfg, overrides)
    except KeyError as error:  # detectron2's, of a key beneath a value
        raise ValueError(error.args[0]) from error


def _fits(cfg: DictConfig, text: str) -> bool:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return override.is_add() or _has(cfg, override.key_or_group)


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


def _check_override(cfg: DictConfig, text: str) -> None:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ValueError(f"cannot read the override {text}: {str(error).splitlines()[0]}") from error
    key = override.key_or_group
    if override.is_delete():
        raise ValueError(f"{text}: nothing can be deleted; set {key}=null, or copy the config")
    if override.is_add():
        return
    if not _has(cfg, key):
        near = _nearest(key, _all_keys(OmegaConf.to_container(cfg)))
        hint = f"did you mean {near}?" if near else "it has no key like it;"
        raise ValueError(f"the config has no {key}: {hint} (+{key}=... adds a new one)")
    _check_value(key, OmegaConf.select(cfg, key), override.value())


def _has(cfg: DictConfig, key: str) -> bool:
    """Whether the config has this key, or it names a parameter of a call that the config describes."""
    node: Any = cfg
    *parents, leaf = key.split(".")
    for part in parents:
        if isinstance(node, DictConfig) and part in node:
            node = node[part]
        elif isinstance(node, ListConfig) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            return False
    if isinstance(node, ListConfig):
        return leaf.isdecimal() and int(leaf) < len(node)
    return isinstance(node, DictConfig) and (leaf in node or leaf in call_parameters(node.get(TARGET)))


def _check_value(key: str, old: Any, new: Any) -> None:
    is_group = isinstance(old, DictConfig) and TARGET not in old
    if is_group and new is not None and not isinstance(new, dict):
        raise ValueError(f"{key} is a group, not a value: set one of {', '.join(f'{key}.{name}' for name in old)}")
    if isinstance(old, bool) and not isinstance(new, bool | None):
        raise ValueError(f"{key} is true or false, not {new}")
    if isinstance(old, int | float) and isinstance(new, str):
        raise ValueError(f"{key} is a number, not {new}")


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key that an override may name."""
    if isinstance(node, dict):
        items = {**dict.fromkeys(sorted(call_parameters(node.get(TARGET)))), **node}
        items.pop(TARGET, None)
    else:
        items = dict(enumerate(node)) if isinstance(node, list) else {}
    for name, child in items.items():
        yield f"{prefix}{name}"
        yield from _all_keys(child, f"{prefix}{name}.")


def _nearest(key: str, keys: Iterator[str]) -> str | None:
    """The likeliest key that was meant: one with the same last part if there is any, else the most similar one."""
    keys = list(keys)
    leaf = key.rpartition(".")[2]
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    if same_leaf:
        return max(same_leaf, key=lambda k: SequenceMatcher(None, k, key).ratio())
    return next(iter(get_close_matches(key, keys, n=1)), None)


@contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Numbers below 1e-38 count as zero, in this thread and in those that it starts.

    A CPU takes many times as long over them, and trained attention is full of them: a step of DAB-DETR takes twice as
    long after a thousand iterations.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


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
        _log_traceback()
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
        _log_traceback()
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
    _log_traceback(problem.exc_value)


def _log_traceback(error: BaseException | None = None) -> None:
    lines = "".join(traceback.format_exception(error or sys.exc_info()[1]))
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "stopped by an error\n%s", (lines,), None)
    for handler in logging.getLogger("detectron2").handlers:
        if getattr(handler, "stream", None) not in (None, sys.stdout, sys.stderr):
            handler.handle(record)
