"""The endpoints: models, chat completions and completions, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from spqfmt.loaders import Generation
from spqfmt.serving.guard import OwnNames
from spqfmt.serving.requests import RequestError, read_request
from spqfmt.serving.waiting import Event, Job
from spqfmt.serving.worker import Worker, what_is_said

MOST_BODY_BYTES = 4 << 20
BODY_SECONDS = 60.0
"""What a client has to send a body."""
_LOOK_SECONDS = 0.25
"""How often it is looked whether a client is still there."""
_GONE = 499


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to this name or number."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_app(
    worker: Worker, model: str, *, most_tokens: int, api_key: str | None = None, host: str = "127.0.0.1"
) -> Starlette:
    """The application that serves one model under this name. It closes the worker as it ends."""
    endpoints = _Endpoints(worker, model, most_tokens, api_key)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)

    return Starlette(
        routes=[
            Route("/health", endpoints.health),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/completions", endpoints.complete, methods=["POST"]),
        ],
        middleware=[Middleware(OwnNames)] if is_loopback(host) and api_key is None else [],
        exception_handlers={RequestError: _refused, HTTPException: _http_error},
        lifespan=lifespan,
    )


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.to_json(), error.status, {"Retry-After": "5"} if error.status == 503 else None)


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(RequestError(error.detail, status=error.status_code).to_json(), error.status_code)


class _Endpoints:
    def __init__(self, worker: Worker, model: str, most_tokens: int, api_key: str | None) -> None:
        self._worker, self._model = worker, model
        self._most_tokens, self._api_key = most_tokens, api_key
        self._created = int(time.time())

    async def health(self, _: Request) -> Response:
        worker = self._worker
        return JSONResponse({"status": "ok", "waiting": worker.n_waiting, "in_work": worker.n_in_work})

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        self._check_key(request)
        if request.path_params["name"] != self._model:
            raise RequestError("no such model here", code="model_not_found", status=404)
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": self._created, "owned_by": "spqfmt"}

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, is_chat=True)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, is_chat=False)

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self._api_key.encode()):
            raise RequestError("a wrong or missing API key", code="invalid_api_key", status=401)

    async def _answer(self, request: Request, *, is_chat: bool) -> Response:
        self._check_key(request)
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        try:
            asked = read_request(body, self._model, is_chat=is_chat, most_tokens=self._most_tokens)
        except Exception as error:  # noqa: BLE001  # one of ours is an answer too, and a line of the server's
            raise what_is_said(error) from None
        job = Job(asked, request.client.host if request.client else "")
        self._worker.submit(job)
        answer = _Answer(self._model, is_chat=is_chat)
        try:
            # Nothing is sent before something came: what is wrong with a request is then its status.
            first = await _next(job, request)
            if isinstance(first, RequestError):
                raise first
            if asked.is_stream:
                stream = answer.stream(job, request, first, with_usage=asked.with_usage)
                return StreamingResponse(stream, media_type="text/event-stream")
            text = ""
            while isinstance(first, str):
                text += first
                first = await _next(job, request)
            if isinstance(first, RequestError):
                raise first
            return Response(status_code=_GONE) if first is None else JSONResponse(answer.whole(text, first))
        except BaseException:
            job.cancel()
            raise


async def _body(request: Request) -> object:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Without this a page in a browser could ask without being allowed to.
        raise RequestError("the body must be application/json", status=415)
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                data += piece
                if len(data) > MOST_BODY_BYTES:
                    raise RequestError(f"more than {MOST_BODY_BYTES} bytes", status=413)
    except TimeoutError:
        raise RequestError(f"the body has not come in {BODY_SECONDS:.0f} s", status=408) from None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise RequestError("the body is not valid JSON") from None


async def _next(job: Job, request: Request) -> Event | None:
    """What comes next of an answer; None, and the job cancelled, where the client has gone."""
    while True:
        try:
            return await asyncio.wait_for(job.events.get(), _LOOK_SECONDS)
        except TimeoutError:
            if await request.is_disconnected():
                job.cancel()
                return None


class _Answer:
    """One answer as JSON: whole, or in pieces."""

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model, self._is_chat = model, is_chat
        self._id = ("chatcmpl-" if is_chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())

    def whole(self, text: str, ended: Generation) -> dict[str, Any]:
        """The answer in one object."""
        said = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        kind = "chat.completion" if self._is_chat else "text_completion"
        return self._object(kind, said, ended) | {"usage": _usage(ended)}

    async def stream(
        self, job: Job, request: Request, first: Event | None, *, with_usage: bool
    ) -> AsyncIterator[str]:
        """The answer as events, each an object."""
        try:
            event = first
            if self._is_chat:
                yield self._piece({"role": "assistant", "content": ""})
            while isinstance(event, str):
                if event:
                    yield self._piece({"content": event} if self._is_chat else event)
                event = await _next(job, request)
            if event is None:
                return
            if isinstance(event, RequestError):
                yield _event(event.to_json())
                return
            yield self._piece({} if self._is_chat else "", event)
            if with_usage:
                empty = self._object(self._kind, {}, None) | {"choices": [], "usage": _usage(event)}
                yield _event(empty)
            yield "data: [DONE]\n\n"
        finally:
            job.cancel()

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _piece(self, said: object, ended: Generation | None = None) -> str:
        return _event(self._object(self._kind, {"delta" if self._is_chat else "text": said}, ended))

    def _object(self, kind: str, said: dict[str, Any], ended: Generation | None) -> dict[str, Any]:
        finish = None if ended is None else "length" if ended.finish == "length" else "stop"
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": [choice],
        }


def _event(found: dict[str, Any]) -> str:
    return f"data: {json.dumps(found, ensure_ascii=False)}\n\n"


def _usage(ended: Generation) -> dict[str, int]:
    n_prompt, n_new = ended.n_prompt_tokens, ended.n_new_tokens
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}
