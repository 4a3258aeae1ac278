"""Names of weights, and mistakes in their files that the first bytes and the length show, without PyTorch."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

MAX_HEADER = 100_000_000  # bytes of a safetensors header, as in the library
ZIP, ONNX = b"PK\x03\x04", b"\x08"
ZOO, HUB = "zoo:", "hf://"  # beginnings of names that stand for files
INCOMPLETE = "it was cut off while it was written or copied: copy it again, or take another checkpoint"


def is_name(checkpoint: str | os.PathLike) -> bool:
    """Whether this is `zoo:NAME` or `hf://org/name/file`, not a file or a URL."""
    return os.fspath(checkpoint).startswith((ZOO, HUB))


def is_remote(checkpoint: str | os.PathLike) -> bool:
    """Whether this is a name or a URL, which may have to be downloaded, not the path of a file."""
    return is_name(checkpoint) or "://" in os.fspath(checkpoint)


def weights_problem(path: str | os.PathLike) -> str | None:
    """Return why a file cannot hold weights, in one line; None if its first bytes and its length are right.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if size == 0:
        return f"{path} is empty: {INCOMPLETE}"
    with path.open("rb") as file:
        head = file.read(64)
        if path.suffix == ".onnx" or (head.startswith(ONNX) and b"pytorch" in head):
            return (
                f"{path} is an ONNX file, which holds a graph and no weights to load: give the .pth or .safetensors "
                "that it was exported from"
            )
        if head.startswith(ZIP):
            return None if _is_archive(path) else f"{path} is incomplete: {INCOMPLETE}"
        length = int.from_bytes(head[:8], "little")
        if head[8:9] == b"{" and length <= MAX_HEADER:
            file.seek(8)
            expected = 8 + length + _data_bytes(file.read(length))
            return f"{path} is incomplete, {size} of {expected} bytes: {INCOMPLETE}" if size < expected else None
    if path.suffix == ".safetensors" or (path.suffix != ".pkl" and is_text(head)):
        return f"{path} is no file of weights: it begins with {head[:16]!r}"
    return None


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are text, such as a page of an error, or a pointer of Git LFS."""
    return not any(byte < 32 and byte not in b"\t\n\r\f" for byte in head.removeprefix(b"\xef\xbb\xbf"))


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its directory claims to be on several disks
        return False


def _data_bytes(header: bytes) -> int:
    try:
        content = json.loads(header)
        return max((tensor["data_offsets"][1] for name, tensor in content.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return 0  # cut off within the header, or not a safetensors file: its reader explains it
