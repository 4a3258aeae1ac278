"""XML files of annotations, with line numbers, and without document types."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from .files import BEGINNING

DECLARED_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""")
EXPAT_ENCODINGS = {b"utf-8", b"utf-16", b"us-ascii", b"iso-8859-1"}
LINE = "{}line"  # an attribute that no file can have


class _RootFound(Exception):
    pass


def parse_xml(data: bytes) -> Element:
    """The root element of an XML document without a DTD, which could make a small file fill the memory.

    Raises:
        ValueError: anything else; the message names the line.
    """
    builder = TreeBuilder()
    data, encoding = _known_encoding(data)
    parser = expat.ParserCreate(encoding)

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, {**attributes, LINE: str(parser.CurrentLineNumber)})

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"not XML: {error}") from error
    return builder.close()


def line_of(element: Element) -> str:
    """The line of its file on which an element of `parse_xml` begins."""
    return element.get(LINE, "")


def root_tag(path: Path) -> str | None:
    """The name of the root element; None for a file that is not XML, or declares a document type."""
    found: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        found.append(tag)
        raise _RootFound

    try:
        with path.open("rb") as file:
            data, encoding = _known_encoding(file.read(BEGINNING))
        parser = expat.ParserCreate(encoding)
        parser.StartElementHandler = start
        parser.StartDoctypeDeclHandler = _refuse
        parser.Parse(data, True)
    except _RootFound:
        return found[0]
    except (expat.ExpatError, OSError, ValueError):
        pass
    return None


def _known_encoding(data: bytes) -> tuple[bytes, str | None]:
    """The document, in UTF-8 if it declares an encoding that expat does not know, such as gbk; and "utf-8" then."""
    declared = DECLARED_ENCODING.match(data)
    if declared is None or declared[1].lower() in EXPAT_ENCODINGS:
        return data, None
    name = declared[1].decode("ascii")
    try:
        return data.decode(name).encode(), "utf-8"
    except (LookupError, ValueError) as error:
        raise ValueError(f"not XML in its declared encoding {name}: {error}") from error


def _refuse(*_: object) -> None:
    raise ValueError("it declares a document type, which annotation files do not need: refused")
