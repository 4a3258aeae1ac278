"""Fonts that have the letters of class names, for detectron2's `Visualizer` and for Pillow."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib import font_manager

logger = logging.getLogger(__name__)

LATIN_GREEK_CYRILLIC = "DejaVuSans.ttf"  # comes with matplotlib
SHOWN = 10  # letters in a warning
PLACEHOLDERS = "LastResort"  # begins the name of fonts whose glyphs are a box for each script
PACKAGES = dict.fromkeys(("CJK", "Hiragana", "Katakana", "Hangul"), "fonts-noto-cjk")  # of Debian, by script
OTHER_PACKAGE = "fonts-noto-core"


@contextmanager
def label_font(
    texts: Iterable[str], font: str | os.PathLike | None = None
) -> Iterator[Callable[[float], ImageFont.FreeTypeFont]]:
    """Let `Visualizer`, and all that matplotlib writes, use a font that has the letters of the texts.

    That is DejaVu Sans, or a font of this computer if letters are missing in it. A warning names the letters that no
    font has, once.

    Args:
        texts: what is going to be written.
        font: a font file to use instead.

    Yields:
        The same font for Pillow, by its size in pixels.

    Raises:
        ValueError: `font` is no font file.
    """
    file = _check_font(font) if font else _font_for(texts)
    if file == _dejavu():
        yield lambda size: ImageFont.truetype(file, size)
        return
    import matplotlib
    from matplotlib import font_manager

    font_manager.fontManager.addfont(file)
    family = font_manager.FontProperties(fname=file).get_name()
    with matplotlib.rc_context({"font.sans-serif": [family, *matplotlib.rcParams["font.sans-serif"]]}):
        yield lambda size: ImageFont.truetype(file, size)


def _check_font(font: str | os.PathLike) -> str:
    try:
        ImageFont.truetype(os.fspath(font), 10)
    except OSError as error:
        raise ValueError(f"{os.fspath(font)} is not a font file: give a .ttf, .otf or .ttc file") from error
    return os.fspath(font)


def _font_for(texts: Iterable[str]) -> str:
    letters = frozenset(letter for text in texts for letter in text if not letter.isascii())
    missing = letters - _letters(_dejavu()) if letters else letters
    return _system_font(missing) or _dejavu() if missing else _dejavu()


@cache
def _dejavu() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", LATIN_GREEK_CYRILLIC))


@cache
def _system_font(missing: frozenset[str]) -> str | None:
    """The font file with most of the letters, among equals an upright one without serifs; None if none has any."""

    def preference(entry: font_manager.FontEntry) -> tuple:
        is_regular = str(entry.weight) in ("400", "normal", "regular", "book")
        return entry.style != "normal", not is_regular, "sans" not in entry.name.lower(), entry.fname

    best, most = None, 0
    for entry in sorted(_entries(), key=preference):
        count = len(missing & _letters(entry.fname))
        if count > most:
            best, most = entry.fname, count
        if most == len(missing):
            break
    if most < len(missing):
        absent = sorted(missing - _letters(best)) if best else sorted(missing)
        scripts = sorted(set(map(_script, absent)))
        logger.warning(
            "no font of this computer has the letters %s%s (%s): boxes stand for them; install a font that has them "
            "(%s), or name a file by font= in Python or --font in commands",
            "".join(absent[:SHOWN]),
            "…" if len(absent) > SHOWN else "",
            ", ".join(scripts),
            "on Debian and Ubuntu: apt install " + " ".join(sorted({PACKAGES.get(s, OTHER_PACKAGE) for s in scripts})),
        )
    return best


def _entries() -> list[font_manager.FontEntry]:
    """The fonts of this computer with glyphs of their own, also those installed since matplotlib wrote its list."""
    from matplotlib import font_manager

    listed = font_manager.fontManager.ttflist
    entries = [entry for entry in listed if not Path(entry.fname).name.startswith(PLACEHOLDERS)]
    for file in sorted(set(font_manager.findSystemFonts()) - {entry.fname for entry in listed}):
        with suppress(Exception):  # FreeType raises many kinds on damaged fonts
            entries.append(font_manager.ttfFontProperty(font_manager.get_font(file)))
    return entries


def _script(letter: str) -> str:
    """The script of a letter, by the first word of its Unicode name: "CJK", "Thai"."""
    word = unicodedata.name(letter, "unnamed").partition(" ")[0]
    return word if word == "CJK" else word.capitalize()


@cache
def _letters(file: str) -> frozenset[str]:
    """The letters that a font has; none for one that cannot be used at every size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except Exception:  # FreeType raises many kinds on damaged and on unusual fonts
        return frozenset()
