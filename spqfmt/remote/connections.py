"""Connections to web servers that end: urllib3 bounds each read, and a server may send a byte in each, for ever."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from spqfmt.remote.expected import N_THREADS

_CONNECT_SECONDS = 10


class _Bounded(HTTPConnection):
    """The head of an answer comes in the time that one read may take, or the connection is cut off."""

    def getresponse(self) -> Any:
        """Wait for an answer, whose body is still to be read."""
        watch = threading.Timer(float(self.timeout or 0), self._cut_off)
        watch.daemon = True
        with contextlib.suppress(RuntimeError):  # no thread to be had: each read is bounded all the same
            watch.start()
        try:
            return super().getresponse()
        finally:
            watch.cancel()

    def _cut_off(self) -> None:
        # It may be gone by now. That of TLS would take its state from under the thread that reads.
        with contextlib.suppress(OSError, AttributeError, TypeError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class _BoundedTLS(_Bounded, HTTPSConnection):
    """The same, with TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Bounded


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _BoundedTLS


def pool_for(url: str, wait_seconds: float) -> urllib3.PoolManager:
    """Connections to the host of an address and those that it leads to, through the proxy that the environment names.

    `wait_seconds`: how long nothing may come.
    """
    options: dict[str, Any] = {
        "maxsize": 2 * N_THREADS,
        "block": False,
        "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=wait_seconds),
    }
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    proxy = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme.lower(), "")
    pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return pool
