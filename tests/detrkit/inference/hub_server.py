"""A server on this machine with the addresses of the Hugging Face hub that uploads and downloads of models need."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from ..weights.file_server import listening

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub:
    """Models by name.

    Attributes:
        files: content by model and path in it.
        private: whether a model is private, by name.
        objects: content of large files by SHA-256.
        requests: method and path of each request.
        token: that uploads need.
    """

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.token = "secret"
        self.url = ""

    def post(self, path: str, body: bytes) -> dict:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            self.files.setdefault(name, {})
            self.private[name] = asked.get("private") is True or asked.get("visibility") == "private"
            return {"url": f"{self.url}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if parts[4:5] == ["preupload"]:
            modes = {True: "lfs", False: "regular"}
            files = [(file["path"], file["path"].endswith(".safetensors")) for file in json.loads(body)["files"]]
            return {"files": [{"path": p, "uploadMode": modes[large], "shouldIgnore": False} for p, large in files]}
        if path.endswith(".git/info/lfs/objects/batch"):
            actions = [(item, f"{self.url}/objects/{item['oid']}") for item in json.loads(body)["objects"]]
            objects = [{**item, "actions": {"upload": {"href": address}}} for item, address in actions]
            return {"transfer": "basic", "objects": objects}
        if parts[4:5] == ["commit"]:
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
            url = f"{self.url}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
            return {"commitUrl": url, "commitOid": COMMIT, "success": True}
        raise KeyError(path)

    def _commit(self, name: str, entries: list[dict]) -> None:
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[name][value["path"]] = self.objects[value["oid"]]


class Handler(BaseHTTPRequestHandler):
    """The hub's answers; `hub` is set by `serving_hub`."""

    hub: Hub

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.hub.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._answer(401, b'{"error": "Invalid username or password."}', Content_Type="application/json")
            return
        self._answer(200, json.dumps(self.hub.post(path, body)).encode(), Content_Type="application/json")

    def do_PUT(self):
        body = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._answer(200)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        files = self.hub.files.get(name)
        if files is None:
            self._answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif revision not in ("main", COMMIT):
            self._answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        elif file not in files:
            self._answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=COMMIT)
        else:
            etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
            self._answer(200, files[file], ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


@contextmanager
def serving_hub():
    """A `Hub` at its `url`, until the block ends."""
    hub = Hub()
    with listening(type("Handler", (Handler,), {"hub": hub})) as hub.url:
        yield hub
