"""Downloads from a server on this machine that behaves as badly as real ones."""

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from file_server import serving

from detrkit.weights import download as module
from detrkit.weights.download import DownloadError, download

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HASH = hashlib.sha256(CONTENT).hexdigest()
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def server():
    with serving() as server:
        server.files["/x.pth"] = CONTENT
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "x.pth"


def get(server, path, sha256=HASH[:8]):
    return download(f"{server.url}/x.pth", path, sha256)


def test_a_file_is_downloaded_once(server, path):
    """A second call asks no server, so that it works without one."""
    assert get(server, path) == path and path.read_bytes() == CONTENT
    get(server, path)
    assert len(server.requests) == 1
    assert [file.name for file in path.parent.iterdir() if file.suffix != ".lock"] == ["x.pth"]


def test_a_cut_connection_is_resumed_at_once(server, path):
    """Each answer brings a part; the next request asks for the rest."""
    server.cut_after = [300_000, 300_000]
    assert get(server, path).read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=300000-", "bytes=600000-"]


def test_a_download_that_ended_goes_on_in_the_next_call(server, path):
    """The server is gone: one line says so, and what came is kept."""
    server.cut_after = [300_000, 0]
    with pytest.raises(DownloadError, match="the connection ended after 300000 of 1048576 bytes; try again"):
        get(server, path)
    assert not path.exists()
    assert get(server, path).read_bytes() == CONTENT
    assert server.requests[-1][1]["Range"] == "bytes=300000-"


def test_a_complete_download_that_was_not_renamed_is_not_repeated(server, path):
    """A process may end between the last byte and the name."""
    get(server, path)
    os.replace(path, path.with_name("x.pth.part"))
    path.with_name("x.pth.part.tag").write_text('"1"')
    assert get(server, path).read_bytes() == CONTENT
    assert server.requests[-1][1]["Range"] == f"bytes={len(CONTENT)}-"


def test_parts_of_two_versions_are_not_joined(server, path):
    """The file has changed since: it is downloaded from the beginning."""
    server.cut_after = [300_000, 0]
    with pytest.raises(DownloadError):
        get(server, path)
    server.files["/x.pth"], server.etag = CONTENT[::-1], '"2"'
    assert get(server, path, "").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("ranges, etag", [(False, '"1"'), (True, ""), (True, 'W/"1"')])
def test_servers_that_cannot_resume_begin_anew(server, path, ranges, etag):
    """Without ranges, or without a tag that tells versions apart byte by byte."""
    server.ranges, server.etag, server.cut_after = ranges, etag, [300_000, 0]
    with pytest.raises(DownloadError):
        get(server, path)
    assert get(server, path).read_bytes() == CONTENT


def test_redirects_are_followed(server, path):
    """Releases on GitHub lead to a storage elsewhere."""
    server.redirects["/latest.pth"] = "/x.pth"
    assert download(f"{server.url}/latest.pth", path, HASH).read_bytes() == CONTENT


def test_a_redirect_in_a_circle_ends(server, path):
    server.redirects["/x.pth"] = "/x.pth"
    with pytest.raises(DownloadError, match="/x.pth"):
        get(server, path)


def test_another_hash_is_an_error_and_leaves_nothing(server, path):
    """A damaged file would give a bad detector without an error."""
    with pytest.raises(DownloadError, match=f"its SHA-256 begins with {HASH[:8]}, expected 00000000"):
        get(server, path, "00000000")
    assert not path.exists() and not path.with_name("x.pth.part").exists()


@pytest.mark.parametrize("place, said", [("/none.pth", "the server answers 404"), ("/page.pth", "sends a web page")])
def test_what_is_not_the_file_is_an_error(server, path, place, said):
    """A page that asks to log in is a common answer with status 200."""
    server.files["/page.pth"], server.types["/page.pth"] = b"<html>", "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match=said):
        download(server.url + place, path)
    assert not path.exists()


def test_without_a_server_one_line_says_so(path):
    with pytest.raises(DownloadError, match="cannot reach http://127.0.0.1:9/x.pth: .*refused"):
        download("http://127.0.0.1:9/x.pth", path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x.pth", "/etc/passwd"])
def test_only_web_addresses_are_downloaded(path, url):
    """A catalogue of a stranger reads no file of this machine."""
    with pytest.raises(ValueError, match="cannot be downloaded"):
        download(url, path)


def test_a_full_disk_is_one_line_and_the_rest_comes_later(server, path, monkeypatch):
    """What was written is kept: with more space the download goes on."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(
            OSError, match=r"cannot write .*: No space left.*free some space.*\$ALIGN_DETR_CACHE"
        ) as error:
            get(server, path)
    assert "\n" not in str(error.value) and not path.exists()
    assert get(server, path).read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_device_without_space_is_one_line(server, path):
    """The system's own error, from the write and again from closing the file."""
    path.parent.mkdir(parents=True)
    path.with_name("x.pth.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="cannot write .*: No space left on device; free some space"):
        get(server, path)


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write .*set \$ALIGN_DETR_CACHE"):
        get(server, tmp_path / "cache" / "x.pth")


def test_two_threads_download_once(server, path):
    threads = [threading.Thread(target=get, args=(server, path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT and len(server.requests) == 1


def test_two_processes_download_once(server, path, run_python):
    """Each rank of a training asks for the weights that it begins with."""
    program = (
        f"import sys; sys.path[:0] = {[str(ROOT / 'projects'), str(ROOT)]!r}\n"
        "import align_detr\nfrom pathlib import Path\nfrom detrkit.weights.download import download\n"
        f"print(download({server.url + '/x.pth'!r}, Path({str(path)!r}), {HASH!r}))"
    )
    with ThreadPoolExecutor() as pool:
        assert [done.stdout.strip() for done in pool.map(run_python, ["-c"] * 2, [program] * 2)] == [str(path)] * 2
    assert path.read_bytes() == CONTENT and len(server.requests) == 1
