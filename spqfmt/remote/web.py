"""A file on a web server, read by ranges: what was asked for, of the file that was opened, or an error."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http.client import BadStatusLine, RemoteDisconnected
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urljoin, urlsplit

from spqfmt.address import Address
from spqfmt.errors import NotSpqError, OptionError, RemoteError
from spqfmt.remote.base import changed
from spqfmt.stand_ins import BEGIN_BYTES, what_came_instead
from spqfmt.version import __version__

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

WAIT_SECONDS = 30
"""How long nothing may come before a connection counts as broken."""
SLOWEST = 4096
"""Bytes a second below which, after `WAIT_SECONDS`, a connection counts as broken too; after twice that the server."""
N_TRIES = 5
"""How often in a row a request may bring nothing."""
_MOST_REDIRECTS = 8
_FOR_ONE_HOST = frozenset({"Authorization", "Cookie", "Proxy-Authorization"})
_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE = 10.0
_PIECE_BYTES = 1 << 16
_MOST_SHOWN = 120
"""Characters of what a server has said."""
_OK, _PARTIAL, _PRECONDITION, _NO_RANGE = 200, 206, 412, 416
_WORTH_ANOTHER_TRY = {408, 429, 500, 502, 503, 504}
_MEANINGS = {
    401: "it wants to know who asks; put a token or a password into the address",
    403: "it refuses; the address may have expired",
    404: "there is no such file",
    410: "the file is gone",
}
# More digits than any size has are no number: Python takes long for thousands of them, and refuses more.
_NUMBER = re.compile(r"[0-9]{1,19}")
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19}|\*)")


class WebFile:
    """A file at an http or https address; `url` is where it really is. `headers` go with every request."""

    def __init__(self, address: Address, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.address = address
        self.n_bytes = 0
        self._url, self._more = _without_login(url, dict(headers or {}))
        self.mark = ""
        self._pool = _pool(self._url)

    def close(self) -> None:
        """Let all idle connections go."""
        self._pool.clear()

    def tail(self, n_bytes: int) -> bytes:
        """Ask for the last bytes as `RemoteFile` says. Raises NotSpqError for a web page, RemoteError for no ranges."""
        nothing = threading.Event()
        began, attempt = time.monotonic(), 0
        while (response := self._ask(f"bytes=-{n_bytes}", attempt)) is None:
            attempt += 1
            self._check_patience(began, 0)
        with response:
            begin = self._opened(response, n_bytes)
            if self.n_bytes == 0:
                return b""
            data = self._take(response, self.n_bytes - begin, time.monotonic(), nothing)
        if begin == 0 and (instead := what_came_instead(data[:BEGIN_BYTES])):
            raise NotSpqError(f"{self.address}: {instead}")
        if len(data) < self.n_bytes - begin:
            data += self.fetch(begin + len(data), self.n_bytes, nothing)
        return data

    def _opened(self, response: BaseHTTPResponse, n_bytes: int) -> int:
        """Where the first answer begins; learns size and mark of the file."""
        self.mark = _mark(response)
        if response.status == _NO_RANGE:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is not None and found[3] == "0":
                return 0
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.status in {_OK, _PARTIAL} and kind in {"text/html", "application/xhtml+xml"}:
            raise NotSpqError(f"{self.address}: a web page, not the file itself; give its raw address")
        if response.status == _OK:
            length = _length(response)
            # What is smaller than the range that was asked for may come as a whole.
            if length is not None and length <= n_bytes:
                self.n_bytes = length
                return 0
            self._no_ranges()
        begin, end, total = self._range(response)
        if end != total or begin != max(0, total - n_bytes):
            raise RemoteError(
                f"{self.address}: asked for the last {n_bytes} bytes the server sends {begin} to {end} of {total}"
            )
        self.n_bytes = total
        return begin

    def fetch(self, begin: int, end: int, stop: threading.Event) -> bytes:
        """Ask for a range as `RemoteFile` says. A connection that breaks is taken up again where it broke."""
        began, data, attempt, reason = time.monotonic(), b"", 0, ""
        while len(data) < end - begin and not stop.is_set():
            if attempt == N_TRIES:
                self._give_up(reason)
            self._check_patience(began, len(data))
            at = begin + len(data)
            started = time.monotonic()
            response = self._ask(f"bytes={at}-{end - 1}", attempt)
            attempt += 1
            if response is None:
                continue
            with response:
                self._check_same(response)
                if response.status == _OK:
                    self._no_ranges()
                if self._range(response) != (at, end, self.n_bytes):
                    raise RemoteError(
                        f"{self.address}: asked for bytes {at} to {end} the server sends others "
                        f"({response.headers.get('Content-Range', '')[:_MOST_SHOWN]})"
                    )
                piece = self._take(response, end - at, started, stop)
            if piece:
                data, attempt = data + piece, min(attempt, 1)
            reason = "it breaks connections off"
        return data

    def _ask(self, byte_range: str, attempt: int) -> BaseHTTPResponse | None:
        """An answer with status 2xx, or one that tells of the range; None for one to be asked for again."""
        import urllib3

        headers = {"Accept-Encoding": "identity", "User-Agent": f"spqfmt/{__version__}", "Range": byte_range}
        headers |= self._more
        if self.mark:
            headers["If-Range"] = self.mark
        if attempt:
            time.sleep(min(_LONGEST_PAUSE, _PAUSE_SECONDS * 2 ** (attempt - 1)))
        try:
            response = self._request(headers)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if attempt + 1 < N_TRIES and not _is_final(error):
                return None
            self._give_up(_reason(error))
        if response.status in _WORTH_ANOTHER_TRY and attempt + 1 < N_TRIES:
            _wait_as_told(response)
            response.close()
            return None
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise RemoteError(f"{self.address}: the server encodes the file's bytes, which no range fits")
        if response.status not in {_OK, _PARTIAL, _NO_RANGE, _PRECONDITION}:
            response.close()
            meaning = _MEANINGS.get(response.status, (response.reason or "")[:_MOST_SHOWN])
            raise RemoteError(f"{self.address}: the server answers {response.status}: {meaning}")
        return response

    def _request(self, headers: dict[str, str]) -> BaseHTTPResponse:
        """The answer of whom the server leads to; what one says who leads on is not read."""
        url = self._url
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._pool.request(
                "GET", url, headers=headers, preload_content=False, redirect=False, retries=False
            )
            place = response.get_redirect_location()
            if not place:
                return response
            self._pass_over(response)
            try:
                before, url = url, urljoin(url, place)
                there, here = urlsplit(url), urlsplit(before)
                _ = there.port
            except ValueError:
                raise RemoteError(f"{self.address}: the server sends on to what is no http address") from None
            if there.scheme not in {"http", "https"} or not there.hostname:
                raise RemoteError(f"{self.address}: the server sends on to what is no http address")
            if (there.scheme, there.netloc) != (here.scheme, here.netloc):
                # What was given for one host is not shown to others.
                headers = {name: value for name, value in headers.items() if name not in _FOR_ONE_HOST}
        raise RemoteError(
            f"{self.address}: the server sends on to other addresses more than {_MOST_REDIRECTS} times"
        )

    def _pass_over(self, response: BaseHTTPResponse) -> None:
        """Read what little is said beside the place, so that the connection can be used again."""
        length = _length(response)
        if length is None or length > _PIECE_BYTES:
            response.close()
            return
        self._take(response, length, time.monotonic(), threading.Event())
        response.drain_conn()
        response.release_conn()

    def _check_patience(self, began: float, n_bytes: int) -> None:
        """Raise RemoteError where so few bytes have come since `began` that it would go on for hours."""
        if time.monotonic() - began > 2 * WAIT_SECONDS + n_bytes / SLOWEST:
            raise RemoteError(f"{self.address}: the server sends less than {SLOWEST} bytes a second")

    def _check_same(self, response: BaseHTTPResponse) -> None:
        """Raise RemoteError where the answer is of another file than the first one."""
        found = _mark(response)
        if response.status == _PRECONDITION or (self.mark and found and found != self.mark):
            raise changed(self.address, "another ETag or date")
        if response.status == _OK and self.mark:
            length = response.headers.get("Content-Length", "")
            if not found or length != str(self.n_bytes):
                raise changed(self.address, "the server no longer knows the range")
        if response.status == _NO_RANGE:
            raise changed(self.address, "its size")
        if response.status == _PARTIAL and self._range(response)[2] != self.n_bytes:
            raise changed(self.address, "its size")

    def _range(self, response: BaseHTTPResponse) -> tuple[int, int, int]:
        """First byte, end and total of an answer that must be a range. Raises RemoteError."""
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status != _PARTIAL or found is None or found[1] is None or found[3] == "*":
            raise RemoteError(
                f"{self.address}: the server does not say which bytes it sends "
                f"(status {response.status}, Content-Range {response.headers.get('Content-Range', '')[:_MOST_SHOWN]!r})"
            )
        begin, end, total = int(found[1]), int(found[2]) + 1, int(found[3])
        if not begin < end <= total:
            raise RemoteError(f"{self.address}: the server sends a range that is none: {found[0]}")
        return begin, end, total

    def _take(self, response: BaseHTTPResponse, n_bytes: int, started: float, stop: threading.Event) -> bytes:
        """What comes of `n_bytes`: fewer where the connection breaks, or is too slow to wait for."""
        import urllib3

        pieces, n = [], 0
        try:
            while n < n_bytes and not stop.is_set():
                piece = response.read1(min(_PIECE_BYTES, n_bytes - n))
                if not piece:
                    break
                pieces.append(piece)
                n += len(piece)
                late = time.monotonic() - started - WAIT_SECONDS
                if late > 0 and n < late * SLOWEST:
                    break
        except (urllib3.exceptions.HTTPError, OSError):
            pass
        if n < n_bytes:
            # Its rest would come as the answer to what is asked next.
            response.close()
        return b"".join(pieces)

    def _no_ranges(self) -> NoReturn:
        raise RemoteError(
            f"{self.address}: the server sends whole files only, no ranges; download the file and give its path"
        )

    def _give_up(self, reason: str) -> NoReturn:
        why = f": {reason}" if reason else ""
        raise RemoteError(f"{self.address}: the server does not answer, tried {N_TRIES} times{why}")


def _pool(url: str) -> PoolManager:
    try:
        from spqfmt.remote.connections import pool_for
    except ImportError as error:
        raise OptionError(
            "files at an address need the package urllib3: pip install 'spqfmt[remote]'"
        ) from error
    return pool_for(url, WAIT_SECONDS)


def _without_login(url: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The address without `user:password@`, which becomes a header."""
    import base64

    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise OptionError(f"{Address(url)}: no address: {error}") from None
    if not parts.hostname:
        raise OptionError(f"{Address(url)}: an address without a host")
    login, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(login).encode()).decode()
    return parts._replace(netloc=host).geturl(), headers


def _length(response: BaseHTTPResponse) -> int | None:
    """How many bytes the body is said to have."""
    said = response.headers.get("Content-Length", "")
    return int(said) if _NUMBER.fullmatch(said) else None


def _mark(response: BaseHTTPResponse) -> str:
    """What tells this file from a later one: a strong ETag, or when it was changed."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _wait_as_told(response: BaseHTTPResponse) -> None:
    """Wait for what a busy server asks for, some seconds at most."""
    told = response.headers.get("Retry-After", "").strip()
    seconds = 0.0
    if told.isdecimal():
        seconds = float(told)
    elif told:
        try:
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
        except (ValueError, TypeError):
            seconds = 0.0
    if seconds > 0:
        time.sleep(min(seconds, _LONGEST_PAUSE))


def _is_final(error: BaseException) -> bool:
    """Whether asking again cannot help: a certificate that is none, an address that is none."""
    from urllib3 import exceptions

    inner = getattr(error, "reason", None) or error
    return isinstance(inner, exceptions.SSLError | exceptions.LocationValueError | exceptions.ResponseError)


def _reason(error: BaseException) -> str:
    """Say in few words, without what urllib3 and Python say of their own objects, what went wrong on the way."""
    inner = getattr(error, "reason", None) or error
    if len(inner.args) == 2 and isinstance(inner.args[1], Exception):
        inner = inner.args[1]
    if isinstance(inner, RemoteDisconnected):
        return "it closes connections without an answer"
    if isinstance(inner, BadStatusLine):
        return "what it says is no HTTP"
    text = " ".join(str(inner).split())
    # urllib3 puts the repr of a connection or its pool before it.
    text = re.sub(r"^.*?\w+\(host=[^)]*\):?\s*|^<[^>]*>:\s*", "", text) or type(inner).__name__
    return text[:_MOST_SHOWN]
