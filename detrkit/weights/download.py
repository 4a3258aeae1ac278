"""Download files: resumed after a cut connection, checked, and written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import portalocker
from iopath.common.file_io import file_lock
from tqdm import tqdm

logger = logging.getLogger(__name__)

CACHE = "ALIGN_DETR_CACHE"
CHUNK = 2**20  # bytes
TIMEOUT = 30.0  # seconds without a byte
PARTIAL = ".part"
TAG = ".tag"  # which version of the file the partial download is of
PARTIAL_CONTENT = 206  # HTTP status of an answer with the bytes that were asked for
BEYOND_THE_END = 416  # of a request for bytes that the file does not have


class DownloadError(OSError):
    """A file cannot be downloaded from its server."""


class ConnectionCut(DownloadError):
    """The server or the network ended a download early."""


def cache_folder() -> Path:
    """Where downloads are kept: `$ALIGN_DETR_CACHE`, by default `~/.cache/align_detr`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "align_detr"
    return Path(os.environ.get(CACHE) or default).expanduser()


def download(url: str, path: Path, sha256: str = "", name: str = "") -> Path:
    """Download a file, unless it is there already.

    A download that ended early goes on where it stopped, in the same call or in a later one. Of several processes that
    need the file, one downloads it and the others wait.

    Args:
        url: of http or https.
        path: where to write. The file appears there when it is complete and its hash is right.
        sha256: the first hexadecimal digits of the hash, or all; empty if it is not known.
        name: for the progress bar, by default the file's.

    Returns:
        `path`.

    Raises:
        DownloadError: the server cannot be reached, it does not send the file, or the file's hash is another one.
        OSError: the file cannot be written, because the disk is full for instance.
        ValueError: the URL is not of http or https.
    """
    if path.is_file():
        return path
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} cannot be downloaded: expected an address that begins with https:// or http://")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if path.is_file():  # another process has downloaded it meanwhile
            return path
        partial = path.with_name(path.name + PARTIAL)
        _complete(url, partial, name or path.name)
        check_hash(partial, sha256, url)
        with _disk_errors(path):
            os.replace(partial, path)
        _tag_file(partial).unlink(missing_ok=True)
    return path


def check_hash(path: Path, sha256: str, source: str) -> None:
    """Delete a file whose hash is another one, and raise DownloadError."""
    if not sha256:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if not digest.hexdigest().startswith(sha256.lower()):
        path.unlink()
        raise DownloadError(
            f"{source} is damaged or another file: its SHA-256 begins with {digest.hexdigest()[: len(sha256)]}, "
            f"expected {sha256}; it was deleted, so try again"
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    lock = file_lock(str(path))
    try:
        with _disk_errors(path):
            lock.acquire()
    except portalocker.LockException as error:
        raise OSError(f"cannot lock {path}: another process has been downloading it for an hour; end it") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Name the file and the way out in what the operating system says. Other errors have no number, and pass."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        advice = "free some space" if error.errno == errno.ENOSPC else "check its permissions"
        raise OSError(f"cannot write {path}: {error.strerror}; {advice}, or set ${CACHE} to another folder") from error


def _complete(url: str, partial: Path, name: str) -> None:
    """Request what `partial` lacks until it is complete, or until an answer brings nothing new."""
    while True:
        before = _size(partial)
        try:
            _request(url, partial, name)
            return
        except ConnectionCut as error:
            if _size(partial) <= before:
                raise
            logger.info("%s; resuming at %.1f MB", error, _size(partial) / 1e6)


def _request(url: str, partial: Path, name: str) -> None:
    """Write the answer to one request to the end of `partial`, or anew if the server does not resume."""
    offset, tag = _size(partial), _read_tag(partial)
    headers = {"User-Agent": "align-detr", "Accept-Encoding": "identity"}
    if offset and tag:
        headers |= {"Range": f"bytes={offset}-", "If-Range": tag}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == BEYOND_THE_END and error.headers.get("Content-Range", "").endswith(f"*/{offset}"):
            return  # the process ended after the last byte
        if error.code == BEYOND_THE_END:
            _forget(partial)
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise ConnectionCut(f"cannot reach {url}: {getattr(error, 'reason', error)}") from error
    with response:
        _check_answer(response, url, offset)
        if response.status != PARTIAL_CONTENT:
            offset = 0
        total = _total(response, offset)
        with _disk_errors(partial):
            _tag_file(partial).write_text(_tag_of(response), encoding="latin-1")
            _write(response, partial, offset, total, name)
    if total is not None and _size(partial) < total:
        raise ConnectionCut(f"{url}: the connection ended after {_size(partial)} of {total} bytes; try again")


def _check_answer(response: HTTPResponse, url: str, offset: int) -> None:
    if response.headers.get_content_type() == "text/html":
        raise DownloadError(f"{url}: the server sends a web page instead of the file")
    if url.startswith("https://") and not response.url.startswith("https://"):
        raise DownloadError(f"{url} leads to {response.url}, which is not encrypted: refused")
    if response.status == PARTIAL_CONTENT and _first_byte(response) != offset:
        raise DownloadError(f"{url}: the server sends another part of the file than was asked for")


def _write(response: HTTPResponse, partial: Path, offset: int, total: int | None, name: str) -> None:
    progress = tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=name, disable=None)
    with partial.open("ab" if offset else "wb") as file, progress:
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, HTTPException) as error:
                raise ConnectionCut(f"{response.url}: the connection ended early ({error}); try again") from error
            if not chunk:
                break
            file.write(chunk)
            progress.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _first_byte(response: HTTPResponse) -> int:
    """The offset that an answer with a part of the file begins at, from "bytes 100-199/200"; -1 if it says none."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else -1


def _total(response: HTTPResponse, offset: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return offset + int(length) if length.isdecimal() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tag_file(partial: Path) -> Path:
    return partial.with_name(partial.name + TAG)


def _read_tag(partial: Path) -> str:
    file = _tag_file(partial)
    return file.read_text(encoding="latin-1").strip() if file.is_file() else ""


def _tag_of(response: HTTPResponse) -> str:
    """What tells this version of the file from later ones. Weak tags do not: bytes may differ."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _tag_file(partial).unlink(missing_ok=True)
