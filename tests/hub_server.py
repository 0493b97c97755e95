"""A hub on the loopback address: as much of its API as huggingface_hub needs to list, fetch and commit files."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_good"  # noqa: S105 - it opens nothing


@dataclass
class Repository:
    """Its files by name, at all of its revisions."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()  # noqa: S324


@dataclass
class Hub:
    """What it holds, and how it misbehaves. `asked` are the method and path of each request."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    forbids: bool = False
    """Whether the token may read and not write."""
    breaks: str = ""
    """Files of this ending come half, every time."""
    page: bool = False
    """Whether all that it says is a web page."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.page:
            self._send(200, b"<!doctype html>", {"Content-Type": "text/html"})
        elif found := re.fullmatch(
            r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?", path
        ):
            self._api(found[1], found[2] or "revision", found[3] or "main", body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif path.startswith("/blobs/"):
            assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
            self.hub.blobs[path.rpartition("/")[2]] = body
            self._send(200, b"")
        else:
            self._refuse(404, "")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while n := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(n))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    @property
    def _knows_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str, revision: str) -> Repository | None:
        """The repository, or None once it is refused."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._knows_token):
            self._refuse(404 if self._knows_token else 401, "RepoNotFound")
        elif found.gated:
            self._refuse(403, "GatedRepo")
        elif revision not in {"main", "v1", found.commit}:
            self._refuse(404, "RevisionNotFound")
        else:
            return found
        return None

    def _api(self, name: str, what: str, revision: str, body: bytes) -> None:
        found = self._repository(name, revision)
        if found is None:
            return
        if what == "revision":
            siblings = [{"rfilename": file} for file in found.files]
            self._json({"id": name, "modelId": name, "sha": found.commit, "siblings": siblings, "tags": []})
        elif what == "tree":
            sizes = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}  # noqa: S324
                for file, data in found.files.items()
            ]
            self._json(sizes)
        elif not self._knows_token or self.hub.forbids:
            self._refuse(403 if self._knows_token else 401, "")
        elif what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".spq") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": modes})
        else:
            self._commit(name, found, [json.loads(line) for line in body.splitlines()])

    def _commit(self, name: str, found: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            said = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(said["summary"])
            elif line["key"] == "file":
                found.files[said["path"]] = base64.b64decode(said["content"])
            else:
                found.files[said["path"]] = self.hub.blobs[said["oid"]]
        address = f"{self.hub.url}/{name}/commit/{found.commit}"
        self._json({"success": True, "commitOid": found.commit, "commitUrl": address})

    def _create(self, said: dict[str, Any]) -> None:
        name = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
        if not self._knows_token or self.hub.forbids:
            self._refuse(403 if self._knows_token else 401, "")
        elif name in self.hub.repositories:
            self._json({"error": "it is there", "url": f"{self.hub.url}/{name}"}, 409)
        else:
            is_private = said.get("private") or said.get("visibility") == "private"
            self.hub.repositories[name] = Repository(private=bool(is_private))
            self._json({"url": f"{self.hub.url}/{name}"})

    def _file(self, name: str, revision: str, file: str) -> None:
        found = self._repository(name, revision)
        if found is None:
            return
        if file not in found.files:
            self._refuse(404, "EntryNotFound")
            return
        data = found.files[file]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": found.commit}  # noqa: S324
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        rest = data[int(begin[1]) :] if begin else data
        if begin:
            headers["Content-Range"] = f"bytes {begin[1]}-{len(data) - 1}/{len(data)}"
        is_broken = bool(self.hub.breaks) and file.endswith(self.hub.breaks) and self.command == "GET"
        self._send(206 if begin else 200, rest, headers, half=is_broken)

    def _json(self, said: Any, status: int = 200) -> None:
        self._send(status, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, half: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = half


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve until the context ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def hub_in_place(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A hub in place of the one that names mean, asked without a token, and with a cache in the folder."""
    from huggingface_hub import constants, utils

    with hub_server() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        yield served
        utils.close_session()
