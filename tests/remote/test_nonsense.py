"""Servers that do not speak HTTP, or that say what no answer has: each is an error of ours, soon, and in one line."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

import spqfmt
from spqfmt.errors import NotSpqError, RemoteError
from spqfmt.remote import web

RANGE = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 100\r\n"


@contextmanager
def saying(said: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """The address of a server that says this to whoever asks, and closes the connection then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                for piece in said():
                    connection.sendall(piece)

        def listen() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/m.spq"
        # Wakes `accept`, which closing the socket does not.
        listener.shutdown(socket.SHUT_RDWR)


def endless(begin: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    """`begin`, then `piece` for ever."""

    def said() -> Iterator[bytes]:
        yield begin
        while True:
            yield piece
            time.sleep(0.0005)

    return said


def once(*pieces: bytes) -> Callable[[], Iterator[bytes]]:
    """These pieces."""
    return lambda: iter(pieces)


NONSENSE = {
    "nothing": once(b""),
    "no HTTP": once(b"220 welcome to ftp\r\n"),
    "zeros": once(bytes(4096)),
    "a status of letters": once(b"HTTP/1.1 abc\r\n\r\n"),
    "an unknown status": once(b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n"),
    "no length": once(b"HTTP/1.1 200 OK\r\n\r\nhello"),
    "an old version": once(b"HTTP/0.9 200\r\n\r\nhello"),
    "a range without a range": once(RANGE, b"\r\n", bytes(100)),
    "a range backwards": once(RANGE, b"Content-Range: bytes 50-3/100\r\n\r\n", bytes(100)),
    "a range behind the end": once(RANGE, b"Content-Range: bytes 0-99/50\r\n\r\n", bytes(100)),
    "a negative range": once(RANGE, b"Content-Range: bytes -5-99/100\r\n\r\n", bytes(100)),
    "a range of unknown size": once(RANGE, b"Content-Range: bytes 0-99/*\r\n\r\n", bytes(100)),
    "a size of many digits": once(RANGE, b"Content-Range: bytes 0-99/" + b"9" * 5000 + b"\r\n\r\n"),
    "a length of many digits": once(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"),
    "a negative length": once(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"),
    "two lengths": once(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello"),
    "long headers": once(b"HTTP/1.1 206 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
    "many headers": once(b"HTTP/1.1 206 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n"),
    "endless headers": endless(b"HTTP/1.1 206 OK\r\n", b"X"),
    "endless heads": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "bad chunks": once(
        RANGE[:31], b"Transfer-Encoding: chunked\r\nContent-Range: bytes 0-99/100\r\n\r\nzz\r\n", bytes(50)
    ),
    "another file's bytes": once(RANGE, b"Content-Range: bytes 0-99/100\r\n\r\n", b"x" * 100),
    "fewer bytes than said": once(RANGE, b"Content-Range: bytes 0-99/100\r\n\r\n", bytes(50)),
    "an endless file": endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 16)),
    "a place that is none": once(b"HTTP/1.1 302 Found\r\nLocation: http://[x/\r\nContent-Length: 0\r\n\r\n"),
    "no place": once(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    "a port that is none": once(
        b"HTTP/1.1 302 Found\r\nLocation: http://a:99999/\r\nContent-Length: 0\r\n\r\n"
    ),
    "a date that is none": once(
        b"HTTP/1.1 503 Busy\r\nRetry-After: Mon, 99 Foo 0000\r\nContent-Length: 0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_an_error_of_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(web, "_PAUSE_SECONDS", 0.001)
    began = time.monotonic()
    with saying(NONSENSE[name]) as address, pytest.raises((RemoteError, NotSpqError)) as found:
        spqfmt.inspect(address)
    assert time.monotonic() - began < 10
    assert str(found.value).startswith(address)
    said = str(found.value).removeprefix(address)
    assert len(said) < 250
    assert not set("\n\0<") & set(said)
    assert "('" not in said
