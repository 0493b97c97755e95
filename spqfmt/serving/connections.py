"""Connections to clients: one on which no request comes is closed, however slowly its head goes on coming."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

LOOK_SECONDS = 15.0
"""How often it is looked: between one and two of these is what a client has for a request's head."""


class TimedConnection(H11Protocol):
    """Uvicorn's connection, which by itself waits for ever for the end of a head that was begun."""

    _last: object = H11Protocol
    """The request that was done at the last look, None for none, or anything else while one was in work."""
    _next_look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at a client from now on."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking when the client has gone."""
        if self._next_look is not None:
            self._next_look.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        asked: RequestResponseCycle | None = self.cycle
        is_busy = asked is not None and not asked.response_complete
        if not is_busy and asked is self._last:
            self.transport.close()
            return
        self._last = H11Protocol if is_busy else asked
        self._next_look = self.loop.call_later(LOOK_SECONDS, self._look)
