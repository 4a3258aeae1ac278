"""A server of files on this machine that can cut connections, redirect, and do without ranges."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Files by path, and how they are served.

    Attributes:
        files: content by path, such as "/x.pth".
        requests: (path, headers) of each request.
        cut_after: bytes of an answer after which the connection ends, for the next requests; None: none is cut.
        ranges: whether parts of a file are served.
        types: content types by path.
        etag: of all files.
        redirects: path by path.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.cut_after: list[int | None] = []
        self.ranges = True
        self.types: dict[str, str] = {}
        self.etag = '"1"'
        self.redirects: dict[str, str] = {}
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.path, dict(handler.headers)))
        if handler.path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[handler.path])
            handler.end_headers()
            return
        content = self.files.get(handler.path)
        if content is None:
            handler.send_error(404)
            return
        first, wanted = 0, handler.headers.get("Range")
        if wanted and self.ranges and handler.headers.get("If-Range") == self.etag:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(content)}")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) - first))
        handler.send_header("Content-Type", self.types.get(handler.path, "application/octet-stream"))
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        cut = self.cut_after.pop(0) if self.cut_after else None
        handler.wfile.write(content[first:] if cut is None else content[first : first + cut])


@contextmanager
def serving():
    """A `FileServer` at its `url`, until the block ends."""
    server = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *words):
            pass

    with listening(Handler) as server.url:
        yield server


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]):
    """Serve by a handler in a thread of its own until the block ends; gives the address."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
