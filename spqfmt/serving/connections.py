"""Connections to clients: those that are slow to ask or to take their answer are closed, however slowly they go on."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

LOOK_SECONDS = 15.0
"""How often it is looked: between one and two of these is what a client has for a request's head."""
TAKE_SECONDS = 60.0
"""What a client has to take what waits for it, 64 KiB and more beside what the system holds: or its rest, when the
connection is closed."""


class TimedConnection(H11Protocol):
    """Uvicorn's connection, which waits for ever by itself: for the end of a head, and for who does not read."""

    _last: object = H11Protocol
    """The request that was done at the last look, None for none, or anything else while one was in work."""
    _next_look: asyncio.TimerHandle | None = None
    _end: asyncio.TimerHandle | None = None
    """When it is given up on a client that takes nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at a client from now on."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking when the client has gone."""
        for timer in (self._next_look, self._end):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client, for some time."""
        super().pause_writing()
        self._give_up_later()

    def resume_writing(self) -> None:
        """Go on: the client has taken most of what there was."""
        super().resume_writing()
        # Of one that is being closed the rest has to go too.
        if self._end is not None and not self.transport.is_closing():
            self._end.cancel()
            self._end = None

    def _give_up_later(self) -> None:
        if self._end is None:
            # What closes it else waits until all is written, which is never.
            self._end = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def _look(self) -> None:
        asked: RequestResponseCycle | None = self.cycle
        is_busy = asked is not None and not asked.response_complete
        if not is_busy and asked is self._last:
            self.transport.close()
            self._give_up_later()
            return
        self._last = H11Protocol if is_busy else asked
        self._next_look = self.loop.call_later(LOOK_SECONDS, self._look)
