"""A web server on the loopback address that gives a file by ranges, and misbehaves on demand."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PIECE_BYTES = 1 << 16


@dataclass
class Site:
    """What is served, and how. `requests` are the ranges that were asked for."""

    folder: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    delay: float = 0.0
    """Seconds before a connection is there, and before each answer: what a link takes there and back."""
    bytes_per_second: float = 0.0
    """What all connections send together at most; 0 for no bound."""
    is_fixed: bool = False
    """Whether the files stay what they are, so that their tags are made once."""
    sent_bytes: int = 0
    """Bytes of bodies so far."""
    with_ranges: bool = True
    with_mark: bool = True
    breaks_after: int | None = None
    """Bytes of a body after which the connection is closed."""
    n_breaks: int = 1 << 30
    statuses: list[int] = field(default_factory=list)
    """Answers to the next requests."""
    shift: int = 0
    """How far the bytes that are sent lie behind those asked for."""
    said_more: int = 0
    """How much larger the file is called than it is."""
    page: bytes | None = None
    encoding: str = ""
    stalls: bool = False
    drip: float = 0.0
    """Seconds before each byte of a body."""
    drips_heads: bool = False
    """Whether heads come so too."""
    said_beside_place: int = 0
    """Bytes that an answer which leads on says that it has, and does not send."""
    moved_to: str = ""
    """What is under /moved is sent on to: this and the rest of its path."""
    tags: dict[Path, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    free_at: float = 0.0
    """When the link has sent all that it was given."""

    def tag(self, file: Path) -> str:
        """The file's ETag."""
        if file not in self.tags or not self.is_fixed:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False))
            self.tags[file] = f'"{digest.hexdigest()}"'
        return self.tags[file]

    def pass_link(self, n_bytes: int) -> None:
        """Wait until the link has room for these bytes."""
        with self.lock:
            self.sent_bytes += n_bytes
            if not self.bytes_per_second:
                return
            self.free_at = max(self.free_at, time.monotonic()) + n_bytes / self.bytes_per_second
            wait = self.free_at - time.monotonic()
        time.sleep(max(0.0, wait))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def setup(self) -> None:
        super().setup()
        time.sleep(self.site.delay)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        time.sleep(site.delay)
        site.requests.append(self.headers.get("Range", ""))
        site.headers.append({name.lower(): value for name, value in self.headers.items()})
        if site.statuses:
            self._send(site.statuses.pop(0), b"busy")
            return
        if self.path.startswith("/moved/"):
            place = {"Location": site.moved_to + self.path.removeprefix("/moved")}
            if site.said_beside_place:
                self.send_response(302)
                self.send_header("Location", place["Location"])
                self.send_header("Content-Length", str(site.said_beside_place))
                self.end_headers()
                self.close_connection = True
                self.wfile.flush()
                time.sleep(1)
                return
            self._send(302, b"", place)
            return
        if site.page is not None:
            self._send(200, site.page, {"Content-Type": "text/html; charset=utf-8"})
            return
        file = site.folder / self.path.partition("?")[0].lstrip("/")
        if not file.is_file():
            self._send(404, b"none")
            return
        n_bytes, tag = file.stat().st_size, site.tag(file)
        headers = {"ETag": tag} if site.with_mark else {}
        if site.encoding:
            headers["Content-Encoding"] = site.encoding
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        is_other = self.headers.get("If-Range", tag) != tag
        if found is None or not site.with_ranges or is_other:
            self._send(200, file.read_bytes(), headers)
            return
        begin = int(found[1]) if found[1] else max(0, n_bytes - int(found[2]))
        end = min(n_bytes, int(found[2]) + 1) if found[1] and found[2] else n_bytes
        if begin >= n_bytes:
            self._send(416, b"", {"Content-Range": f"bytes */{n_bytes}"})
            return
        begin, end = begin + site.shift, end + site.shift
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{n_bytes + site.said_more}"
        with file.open("rb") as opened:
            opened.seek(begin)
            self._send(206, opened.read(end - begin), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        site = self.site
        if site.drips_heads:
            self._drip(b"HTTP/1.1 206 ")
        self.end_headers()
        if site.drip:
            self._drip(body)
            return
        if (
            status == 206
            and site.breaks_after is not None
            and len(body) > site.breaks_after
            and site.n_breaks
        ):
            site.n_breaks -= 1
            self.wfile.write(body[: site.breaks_after])
            self.wfile.flush()
            if site.stalls:
                time.sleep(1)
            self.close_connection = True
            self.connection.close()
            return
        for begin in range(0, len(body), _PIECE_BYTES):
            piece = body[begin : begin + _PIECE_BYTES]
            site.pass_link(len(piece))
            self.wfile.write(piece)

    def _drip(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                time.sleep(self.site.drip)
                self.wfile.write(bytes([byte]))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error here."""


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """The files of a folder at `site.url`."""
    site = Site(folder)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
