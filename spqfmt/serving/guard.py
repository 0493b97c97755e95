"""Only those who ask this machine by one of its own names: a page in a browser reaches it under a name of its own."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from spqfmt.serving.requests import RequestError

_OWN_NAMES = {"127.0.0.1", "localhost", "::1"}


class OwnNames:
    """Answers requests for other hosts itself, with status 400."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request, as ASGI has it."""
        if scope["type"] == "http" and not _is_own(Headers(scope=scope).get("host", "")):
            error = RequestError(
                "this server answers those who ask for 127.0.0.1 or localhost; --api-key lets others in",
                code="wrong_host",
            )
            await JSONResponse(error.to_json(), error.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_own(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in _OWN_NAMES
    except ValueError:
        return False
