"""Published weights by name: `zoo:NAME` wherever a file of weights is expected.

`zoo.yaml` lists them. `$ALIGN_DETR_ZOO` names a file of the same form, whose entries are added, or replace those of the
same name: for own weights, and for mirrors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

from detrkit.config.catalogue import is_config
from detrkit.runtime.weight_files import ZOO as PREFIX

from .download import DownloadError, cache_folder, download

if TYPE_CHECKING:
    from omegaconf import DictConfig

OWN_CATALOGUE = "ALIGN_DETR_ZOO"
CATALOGUE = Path(__file__).with_name("zoo.yaml")
BY_HAND = ("drive.google.com",)
"""Hosts that give files to browsers alone."""

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
HASH = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class ZooEntry:
    """Published weights.

    Attributes:
        name: what follows `zoo:`.
        title: what its authors call it.
        detector: such as "DINO".
        backbone: such as "R50".
        url: of the file; of a page for people, if the file is not to be had by a program.
        format: the code base that it comes from.
        licence: of the weights, as published.
        source: where these facts were found.
        ap: box AP on COCO val2017 as published, in %; None: not published, or of other data.
        config: name or path of the config of its model; empty: there is none.
        overrides: `key=value` for the config.
        sha256: first digits of the file's hash; empty: not published.
        companions: files beside it that are needed too, such as `config.json`.
        missing: what this project lacks to use it, if `config` does not exist.
        note: for people.
    """

    name: str
    title: str
    detector: str
    backbone: str
    url: str
    format: str
    licence: str
    source: str
    ap: float | None = None
    config: str = ""
    overrides: tuple[str, ...] = ()
    sha256: str = ""
    companions: tuple[str, ...] = ()
    missing: str = ""
    note: str = ""

    @property
    def lacks(self) -> str:
        """What this project lacks to use these weights; empty if they can be used."""
        if self.config and (is_config(self.config) or Path(self.config).is_file()):
            return ""
        return self.missing or f"the config {self.config}"

    @property
    def state(self) -> str:
        """Whether the file is on this machine, and what this project lacks to use it, in a few words."""
        if self.lacks:
            return f"needs {self.lacks}"
        if self.cached:
            return "here"
        return "by hand" if self.is_by_hand else ""

    @property
    def is_by_hand(self) -> bool:
        """Whether only a browser can download it."""
        return urlsplit(self.url).hostname in BY_HAND or not self.file_name.endswith(SUFFIXES)

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def folder(self) -> Path:
        """Where the file is kept on this machine."""
        return cache_folder() / "weights" / self.name

    @property
    def cached(self) -> Path | None:
        """The file on this machine; None if it is not there. What a person put there may have any name."""
        if not self.is_by_hand:
            path = self.folder / self.file_name
            return path if path.is_file() else None
        files = [path for path in self.folder.glob("*") if path.suffix in SUFFIXES]
        return files[0] if len(files) == 1 else None


def catalogue() -> dict[str, ZooEntry]:
    """All entries by name, those of `$ALIGN_DETR_ZOO` last.

    Raises:
        FileNotFoundError, ValueError: a file is not there, or is no catalogue.
    """
    own = os.environ.get(OWN_CATALOGUE)
    return {**_read(CATALOGUE), **(_read(Path(own).expanduser()) if own else {})}


def find_entry(name: str) -> ZooEntry:
    """The entry of a name, with or without `zoo:`.

    Raises:
        ValueError: there is none; the message has the names that are like it.
    """
    name = name.removeprefix(PREFIX)
    entries = catalogue()
    if name in entries:
        return entries[name]
    near = get_close_matches(name, entries, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`align-detr weights list` lists them"
    raise ValueError(f"there are no weights named {PREFIX}{name}: {hint}")


def select(detector: str = "", backbone: str = "") -> list[ZooEntry]:
    """The entries whose detector and backbone contain these words, in any case and without regard to `-` and spaces."""
    return [
        entry
        for entry in catalogue().values()
        if _plain(detector) in _plain(entry.detector) and _plain(backbone) in _plain(entry.backbone)
    ]


def config_of(name: str, overrides: tuple[str, ...] | list[str] = ()) -> DictConfig:
    """The config of the model that the weights `zoo:NAME` are for.

    Raises:
        ValueError: there is no such entry, this project lacks something for it, or an override does not fit.
    """
    from detrkit.config.load import load_config  # imports PyTorch, which listing the entries does not need

    entry = find_entry(name)
    if entry.lacks:
        raise ValueError(f"{PREFIX}{entry.name} cannot be used: this project does not have {entry.lacks}")
    return load_config(entry.config, [*entry.overrides, *overrides])


def get(name: str) -> Path:
    """The file of the weights `zoo:NAME`, downloaded if it is not on this machine.

    Raises:
        ValueError: there is no such entry.
        OSError: it cannot be downloaded. One line says why, where to get it, and where to put it.
    """
    entry = find_entry(name)
    if cached := entry.cached:
        return cached
    if entry.is_by_hand:
        note = f" ({entry.note})" if entry.note else ""
        raise FileNotFoundError(
            f"{PREFIX}{entry.name} can be downloaded by a browser alone: fetch {entry.title}{note} from {entry.url}, "
            f"and put the file in {entry.folder}"
        )
    path = entry.folder / entry.file_name
    try:
        for companion in entry.companions:
            download(f"{entry.url.rpartition('/')[0]}/{companion}", entry.folder / companion)
        return download(entry.url, path, entry.sha256, entry.name)
    except DownloadError as error:
        raise DownloadError(f"{error}; fetch that address elsewhere, and put the file at {path}") from error


@cache
def _read(path: Path) -> dict[str, ZooEntry]:
    if not path.is_file():
        raise FileNotFoundError(f"${OWN_CATALOGUE}={path}: no such file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a catalogue of weights: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a catalogue of weights: expected entries by name")
    return {str(name): _entry(str(name), facts, path) for name, facts in content.items()}


def _entry(name: str, facts: Any, path: Path) -> ZooEntry:
    """An entry of a catalogue. Names become names of files, so they cannot lead out of the cache."""
    where = f"{path}: {name}"
    if not isinstance(facts, Mapping):
        raise ValueError(f"{where} is not a mapping")
    known = {field.name for field in fields(ZooEntry)} - {"name"}
    if stray := [key for key in facts if key not in known]:
        raise ValueError(f"{where}.{stray[0]}: no such key; there are {', '.join(sorted(known))}")
    lists = {key: _words(facts[key], f"{where}.{key}") for key in ("overrides", "companions") if key in facts}
    given = {"name": name, "title": name, **dict.fromkeys(("detector", "backbone", "format", "licence", "source"), "")}
    entry = ZooEntry(**{**given, "url": "", **facts, **lists})
    texts = [field.name for field in fields(ZooEntry) if field.type == "str"]
    if odd := [key for key in texts if not isinstance(getattr(entry, key), str)]:
        raise ValueError(f"{where}.{odd[0]} is not a text: put it in quotes")
    if not entry.url.startswith(("https://", "http://")):
        raise ValueError(f"{where}.url={entry.url}: expected an address that begins with https:// or http://")
    names = [name, *entry.companions, *([] if entry.is_by_hand else [entry.file_name])]
    if odd := [text for text in names if not NAME.fullmatch(text)]:
        raise ValueError(f"{where}: {odd[0]!r} is not a name of letters, digits and _.+-")
    if entry.sha256 and not HASH.fullmatch(entry.sha256):
        raise ValueError(f"{where}.sha256={entry.sha256}: expected 8 to 64 lower-case hexadecimal digits")
    return entry


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{where} is not a list of texts")
    return tuple(value)


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text.lower())
