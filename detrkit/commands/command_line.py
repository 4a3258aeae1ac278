"""What the commands share: arguments, their parsing, and checks of them.

This module and the commands import PyTorch and the library only inside functions, so that help, completion and
mistakes in options are answered at once.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from detrkit.commands.choices import RUNTIME_TYPES, RUNTIMES
from detrkit.commands.error_line import errors_in_one_line
from detrkit.commands.near_options import advice

OVERRIDE = re.compile(r"([+~]{0,2}[\w.]+=)|~[\w.]+$")


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
    option = parser.add_argument("--checkpoint", "--weights", metavar="FILE", help=help)
    option.completer = complete_checkpoint
    add_which(parser)


def add_which(parser: argparse.ArgumentParser) -> None:
    """Add `--which`."""
    parser.add_argument(
        "--which",
        choices=("best", "final"),
        help="checkpoint of a training's folder: best, which evaluated best, or final, at the end of the training "
        "(default: final; of a training that was stopped, which has none: best, else the newest)",
    )


def score(text: str) -> float:
    """Return a score threshold of the command line; for argparse."""
    from detrkit.runtime.scores import checked_score

    try:
        return checked_score(float(text), text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: expected a score from 0 to 1") from error


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


def complete_checkpoint(prefix: str, **_) -> list[str]:
    """Files, and names of published weights; for argcomplete."""
    from detrkit.commands.completers import checkpoints

    return checkpoints(prefix)


def complete_override(prefix: str, parsed_args: argparse.Namespace, **_) -> list[str]:
    """Keys and values of the config on the command line; its name as long as there is none; for argcomplete."""
    from detrkit.commands.completers import overrides

    return overrides(prefix, parsed_args)


def check_exist(config: str | None, checkpoint: str | os.PathLike | None, kinds: str = "") -> None:
    """Check that what the command line names is there, before the library is imported.

    Args:
        config: a config, the folder of a training, an exported file, or `zoo:NAME`.
        checkpoint: a file, a URL or the folder of a training.
        kinds: what `config` may be, for the message; "": a config, or a folder if it looks like the path of one.

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

        is_path = len(Path(config).parts) > 1 or config.endswith(os.sep)
        kinds = kinds or ("folder or config" if is_path and not Path(config).suffix else "config")
        try:
            find_config(config, trainings="folder" in kinds)
        except FileNotFoundError as error:
            raise FileNotFoundError(str(error).replace("no such config", f"no such {kinds}", 1)) from error
        if config.endswith(".safetensors") and (problem := weights_problem(config)):
            raise ValueError(problem)
    text = os.fspath(checkpoint or "")
    if not text or is_remote(text):
        return
    if not Path(text).exists():
        raise FileNotFoundError(f"no such checkpoint: {text}")
    if Path(text).is_file() and (problem := weights_problem(text)):
        raise ValueError(problem)


def check_output_file(path: Path | None, option: str = "--output") -> None:
    """Check that a file can be written, before the work begins.

    Raises:
        OSError: it cannot; the message has the reason.
    """
    from detrkit.runtime.files import check_writable

    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder: give the name of a file")
    check_writable(path.parent, f"{option} ")


def check_output_picture(path: Path) -> None:
    """Check that a picture can be written, before the work begins.

    Raises:
        OSError: it cannot; the message has the reason.
        ValueError: its name does not end as that of a picture.
    """
    from PIL import Image

    check_output_file(path)
    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--output {path} is not the name of a picture: end it in .png or .jpg")


def check_output_folder(path: Path | None) -> None:
    """Check that files can be written into the folder of `--output`, before the work begins.

    Raises:
        OSError: they cannot; the message has the reason.
    """
    from detrkit.runtime.files import check_writable

    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"--output {path} is a file: give the name of a folder")
    check_writable(path, "--output ")


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
