"""Quote the values of command-line overrides that hydra's grammar refuses, or reads as something else.

detectron2 and the embedded engine read overrides in hydra's grammar. There, text with a `#`, a comma, a bracket, a
quote or a letter outside ASCII has to be quoted, after the shell has taken its own quotes away.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# The last word of keys that name a file or a folder, such as output_dir and init_checkpoint.
PATH_KEY = re.compile(r"(^|_)(checkpoint|dir|file|folder|path|root|weights)$")
KEY = re.compile(r"\+{0,2}[\w.]+")
QUOTES = ("'", '"')
BRACKETS = ("[", "{")


def as_list(overrides: Sequence[str]) -> list[str]:
    """Return overrides as a list.

    Raises:
        ValueError: they are one string, which would be taken for a list of letters.
    """
    if isinstance(overrides, str):
        raise ValueError(f"overrides={overrides!r}: expected a list of \"key=value\", such as [{overrides!r}]")
    return list(overrides)


def key_of(override: str) -> str:
    """Return the key of an override: `a.b` for `a.b=1`, `+a.b=1` and `~a.b`. Its value may be outside the grammar."""
    return override.partition("=")[0].lstrip("+~")


def quoted(text: str) -> str:
    """Return `text` as a quoted value of hydra's grammar."""
    # A backslash is literal, except before a quote, and so at the end of the text.
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def in_grammar(cfg: DictConfig, override: str) -> str:
    """Return the override in hydra's grammar, with its value quoted if that is text.

    Keys that name a file or a folder take any text, also text that looks like a number, a list or several values; only
    null, interpolations (`${a.b}`) and text in quotes mean the same as in other keys. For other keys a value that the
    grammar refuses is text.

    Raises:
        ValueError: a list or a mapping is not in the grammar, or there are several values; the message has the value
            quoted as text.
    """
    key, equals, value = override.partition("=")
    if not equals or not KEY.fullmatch(key):
        return override
    as_text = f"{key}={quoted(value)}"
    names_path = _names_path(cfg, key)
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        if names_path or not value.startswith(BRACKETS):
            return as_text
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot read the override {override}: {reason}; as text: {shlex.quote(as_text)}") from error
    if parsed.is_sweep_override():
        if names_path:
            return as_text
        as_list = shlex.quote(f"{key}=[{value}]")
        raise ValueError(f"{override} is several values; as a list: {as_list}, as text: {shlex.quote(as_text)}")
    means_the_same = parsed.value() is None or value.lstrip().startswith(QUOTES) or "${" in value or not value
    return override if means_the_same or not names_path else as_text


def _names_path(cfg: DictConfig, key: str) -> bool:
    if not PATH_KEY.search(key.rpartition(".")[2]):
        return False
    try:
        return isinstance(OmegaConf.select(cfg, key), str | None)
    except OmegaConfBaseException:  # of a reference to a key that is not there
        return True
