"""What the commands share: arguments, their parsing, and errors in one line.

This module and the commands import PyTorch and the library only inside functions, so that help, completion and
mistakes in options are answered at once.
"""

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
from typing import NoReturn

from detrkit.commands.choices import RUNTIME_TYPES, RUNTIMES
from detrkit.commands.near_options import advice

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
OVERRIDE = re.compile(r"([+~]{0,2}[\w.]+=)|~[\w.]+$")
SECONDS_FOR_RANK_0 = 15


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, and name the option that is nearest to an unknown one.

    Args:
        description: what the command does.
        examples: calls of the command, for the end of its help.
        more: paragraphs between the options and the examples.
    """

    def __init__(self, description: str = "", examples: Sequence[str] = (), more: str = "", **kwargs):
        epilog = "\n\n".join(part for part in (more.strip(), _list_of("examples", examples)) if part)
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        self.examples = tuple(examples)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (`{self.prog} --help` lists the options)\n")


def _list_of(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)]) if lines else ""


def add_config(parser: argparse.ArgumentParser, help: str = "", default: str = "", metavar: str = "CONFIG") -> None:
    """Add the config as the first word of the command line, or as the option `--config-file`.

    Args:
        help: what the command does with it.
        default: the config if none is given.
    """
    text = help or "name (`align-detr configs` lists them) or path of a config"
    parser.add_argument("config", nargs="?", default=default, metavar=metavar, help=text).completer = complete_config
    option = parser.add_argument("--config-file", metavar="CONFIG", help="the same as an option, as in detectron2")
    option.completer = complete_config


def add_checkpoint(parser: argparse.ArgumentParser, help: str) -> None:
    """Add `--checkpoint` and `--which`."""
    parser.add_argument("--checkpoint", "--weights", metavar="FILE", help=help)
    parser.add_argument(
        "--which",
        choices=("best", "final"),
        help="checkpoint of a training's folder: the one that evaluated best, or the last (default: the last)",
    )


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Add --tta, for `with_tta`."""
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: also detect in the mirrored image, at each size of train.test_aug.min_sizes",
    )


def with_tta(args: argparse.Namespace) -> list[str]:
    """Return the overrides, with that of --tta. Its `+` is for configs of earlier versions."""
    return [*args.overrides, *(["+train.test_aug.enabled=True"] if args.tta else [])]


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Add `--runtime` and `--dtype`, for graphs."""
    group = parser.add_argument_group("graphs (.onnx, .xml)")
    group.add_argument(
        "--runtime", choices=RUNTIMES, help="default: ONNX Runtime for .onnx, OpenVINO, which takes both, for .xml"
    )
    group.add_argument(
        "--dtype",
        choices=RUNTIME_TYPES,
        default="float32",
        help="type that OpenVINO computes in (default: %(default)s)",
    )


def add_overrides(parser: argparse.ArgumentParser, help: str = "changes to the config") -> None:
    """Add the words `key=value`; call it after `add_config`."""
    action = parser.add_argument("overrides", nargs="*", metavar="key=value", help=help)
    action.completer = complete_override


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Add `--config-file` and `--iou`, for commands that read the last evaluation in the folder of a training."""
    config = parser.add_argument(
        "--config-file", metavar="CONFIG", help="(default: config.yaml in the folder, which may name no code of yours)"
    )
    config.completer = complete_config
    parser.add_argument(
        "--iou",
        type=float,
        default=0.5,
        metavar="X",
        help="IoU from which a detection finds an object (default: %(default)s)",
    )


def add_tiles(parser: argparse.ArgumentParser) -> None:
    """Add `--tile` and `--overlap`."""
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="for small objects: also detect in overlapping tiles of N x N pixels of images that are larger",
    )
    parser.add_argument(
        "--overlap", type=float, default=0.2, metavar="X", help="of tiles, as a share of N (default: %(default)s)"
    )


def check_tiles(args: argparse.Namespace) -> None:
    """Check the options of `add_tiles`, before the library is imported.

    Raises:
        ValueError: one is out of range.
    """
    if args.tile is not None and args.tile < 16:
        raise ValueError(f"--tile {args.tile}: at least 16 pixels")
    if not 0 <= args.overlap <= 0.9:
        raise ValueError(f"--overlap {args.overlap:g}: expected 0 to 0.9")


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line whose options, config and `key=value` may come in any order.

    Args:
        words: by default those of the command line.

    Returns:
        The arguments. `config` is "" or a word, `overrides` has all `key=value`, and `words`, if the parser has a
        default for it, the words as given.

    Exits with status 2 and one line if the words do not fit.
    """
    words = list(sys.argv[1:] if words is None else words)
    check_options(parser, words)
    args = parser.parse_intermixed_args(words)
    if hasattr(args, "words"):  # a command that prints how it was called
        args.words = words
    if not hasattr(args, "overrides"):
        return args
    given = getattr(args, "config", None)
    default = parser.get_default("config")
    plain = [given] if given and given != default else []
    plain += args.overrides
    args.overrides = []
    take_overrides(plain, args.overrides)
    for action in parser._actions:  # an option that takes any number of words took the overrides after it too
        takes_words = action.option_strings and action.nargs in ("+", "*") and action.type is None
        if takes_words and not getattr(action, "keeps_changes", False):
            take_overrides(getattr(args, action.dest) or [], args.overrides)
    if hasattr(args, "config"):
        configs = [*plain, *([args.config_file] if args.config_file else [])]
        if len(configs) > 1:
            stray, config = (plain[0], args.config_file) if args.config_file else (plain[1], plain[0])
            parser.error(f"{stray} is not a change as key=value, and {config} is given already")
        args.config = configs[0] if configs else default
    elif plain:
        parser.error(f"{plain[0]} is not a change as key=value")
    return args


def check_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Exit with one line if a word is an option that the parser does not have."""
    known = [text for text in parser._option_string_actions if text.startswith("--")]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "--":
            return
        name = word.partition("=")[0]
        if not re.match(r"--\w", name) or any(option.startswith(name) for option in known):
            continue
        hint = advice(word, following, known, any(action.dest == "overrides" for action in parser._actions))
        parser.error(f"there is no option {name}" + (f": {hint}" if hint else ""))


def take_overrides(words: list[str], overrides: list[str]) -> None:
    """Move the `key=value` among `words` to `overrides`. A word that is an existing file stays."""
    found = [word for word in words if OVERRIDE.match(word) and not Path(word).exists()]
    overrides += found
    words[:] = [word for word in words if word not in found]


def complete_config(prefix: str, **_) -> list[str]:
    """Names of configs, and files; for argcomplete."""
    from detrkit.commands.completers import configs

    return configs(prefix)


def complete_override(prefix: str, parsed_args: argparse.Namespace, **_) -> list[str]:
    """Keys and values of the config on the command line; its name as long as there is none; for argcomplete."""
    from detrkit.commands.completers import overrides

    return overrides(prefix, parsed_args)


def check_exist(config: str | None, checkpoint: str | os.PathLike | None, kinds: str = "config") -> None:
    """Check that what the command line names is there, before the library is imported.

    Args:
        config: a config, the folder of a training, an exported file, or `zoo:NAME`.
        checkpoint: a file, a URL or the folder of a training.
        kinds: what `config` may be, for the message.

    Raises:
        FileNotFoundError: it is not; the message has configs of similar names.
        ValueError: the checkpoint is incomplete, or no file of weights.
    """
    from detrkit.runtime.weight_files import is_name, is_remote, weights_problem

    if config and Path(config).is_dir():
        if not Path(config, "config.yaml").is_file():
            raise FileNotFoundError(f"{config} is not the folder of a training: it has no config.yaml")
    elif config and not is_name(config):
        from detrkit.config.catalogue import find_config

        try:
            find_config(config, trainings="folder" in kinds)
        except FileNotFoundError as error:
            raise FileNotFoundError(str(error).replace("no such config", f"no such {kinds}", 1)) from error
    text = os.fspath(checkpoint or "")
    if not text or is_remote(text):
        return
    if not Path(text).exists():
        raise FileNotFoundError(f"no such checkpoint: {text}")
    if Path(text).is_file() and (problem := weights_problem(text)):
        raise ValueError(problem)


def check_output(path: Path | None) -> None:
    """Check that the file or folder of `--output` can be written, before the work begins.

    Raises:
        OSError: it cannot; the message has the reason.
    """
    from detrkit.runtime.files import check_writable

    if path is not None:
        check_writable(path.parent if path.suffix and not path.is_dir() else path, "--output ")


def find_named(args: argparse.Namespace) -> tuple[str, str, Path | None]:
    """Return the config, the weights and the folder of a training that `config`, `--checkpoint` and `--which` name.

    Prints the weights if they are chosen from a folder. See `detrkit.inference.sources.find_named`.
    """
    from detrkit.inference.sources import find_named

    named = find_named(args.config, args.checkpoint, args.which)
    if named.folder is not None:
        print(f"weights: {named.weights}", flush=True)
    return named


@contextmanager
def interrupts_end(advice: str = "") -> Iterator[None]:
    """End the program on Ctrl-C inside the block, with the exit status that shells expect, after a line of advice."""
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


def _imported(names: Sequence[tuple[str, str]]) -> list[type]:
    return [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]


def _message_of(error: Exception) -> str | None:
    """The line to print; "" if it was printed by another process; None for an error that needs its traceback."""
    if is_user_error(error):
        return _one_line(error)
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
