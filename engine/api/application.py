"""The engine's ASGI application: what stands before every request, and what becomes of errors."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...core.errors import ResearcherError
from ...core.http_guard import HttpGuard
from ..interface import RequestRejectedError
from ..service.futures import ConflictError
from ..service.scheduler import BusyError
from ..service.service import Engine, SessionFinishedError
from ..service.store import NoSuchCheckpointError
from ..wire import PROTOBUF
from . import identity, openai_api, rest, routes
from .connections import BODY_PAUSE_S, BODY_TIMEOUT_S
from .http_answers import MOST_BODY_BYTES, BodyTooLargeError, SlowBodyError, refusal

logger = logging.getLogger(__name__)

_MEDIA_TYPES = ("application/json", PROTOBUF)
_STATUSES: dict[type[Exception], int] = {
    NoSuchCheckpointError: 404,
    SlowBodyError: 408,
    ConflictError: 409,
    SessionFinishedError: 410,
    BodyTooLargeError: 413,
}
_OPEN_PATHS = frozenset({"/api/v1/healthz"})
# Not a sign that somebody needs the engine: an idle client sends these for ever.
_BACKGROUND = frozenset({"/api/v1/session_heartbeat", "/api/v1/telemetry", "/api/v1/client/dynamic_config"})


def build_app(
    engine: Engine,
    *,
    api_key: str,
    host: str = "127.0.0.1",
    allow_hosts: Sequence[str] = (),
    on_idle: Callable[[], None] | None = None,
) -> Starlette:
    """The ASGI application.

    Args:
        engine: What it serves.
        api_key: Every request must carry it, or a token it was exchanged for.
        host: The address it is served on.
        allow_hosts: Further names that clients may call it by.
        on_idle: Called every few seconds while there is nothing to do.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        tasks = [asyncio.create_task(engine.scheduler.run()), asyncio.create_task(_sweep(engine, on_idle))]
        try:
            yield
        finally:
            engine.scheduler.close()
            for task in tasks:
                task.cancel()

    app = Starlette(
        routes=[*routes.routes(), *rest.routes(), *openai_api.routes()],
        lifespan=lifespan,
        middleware=[
            Middleware(HttpGuard, host=host, allow_hosts=allow_hosts, media_types=_MEDIA_TYPES),
            Middleware(_Gate, engine=engine, api_key=api_key),
        ],
        exception_handlers={
            RequestRejectedError: _refuse,
            ResearcherError: _refuse,
            BusyError: _busy,
            ValidationError: _malformed,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
    )
    app.state.engine = engine
    app.state.api_key = api_key
    app.state.copying = asyncio.Lock()
    return app


async def _sweep(engine: Engine, on_idle: Callable[[], None] | None) -> None:
    while True:
        await asyncio.sleep(engine.sweep_s)
        engine.forget_silent(time.monotonic())
        if on_idle is not None and not engine.scheduler.busy and not engine.scheduler.waiting:
            on_idle()


class _Gate:
    """Checks the key and the size of a body before anything reads it, and that it keeps coming while it is read."""

    def __init__(self, app: ASGIApp, engine: Engine, api_key: str) -> None:
        self._app = app
        self._engine = engine
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] not in _OPEN_PATHS | _BACKGROUND:
                self._engine.scheduler.last_work = time.monotonic()
            refused = self._refusal(scope)
            if refused is not None:
                await refused(scope, receive, send)
                return
            receive = _in_time(receive)
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._may_pass(scope, headers):
            # The mark makes the SDK exchange its key again instead of giving up on an expired token.
            mark = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            return refusal(401, "the API key was refused by this engine", **mark)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
            return refusal(413, f"the body is larger than {MOST_BODY_BYTES:,} bytes: send fewer sequences at once")
        return None

    def _may_pass(self, scope: Scope, headers: dict[str, str]) -> bool:
        if scope["path"] in _OPEN_PATHS or rest.is_signed(scope, self._api_key):
            return True
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self._api_key.encode()):
            return True
        # A token is not a credential that a new token can be had for.
        return scope["path"] != "/api/v1/auth/token" and identity.is_valid_token(given, self._api_key)


def _in_time(receive: Receive) -> Receive:
    """The same messages; a body that stops coming, or comes for too long, ends in a `SlowBodyError`."""
    ends = time.monotonic() + BODY_TIMEOUT_S
    complete = False

    async def timed() -> Message:
        nonlocal complete
        if complete:  # what follows is the end of the connection, which nobody is late for
            return await receive()
        try:
            async with asyncio.timeout(min(BODY_PAUSE_S, max(0.0, ends - time.monotonic()))):
                message = await receive()
        except TimeoutError as error:
            raise SlowBodyError("the body did not come in time") from error
        complete = not message.get("more_body", False)
        return message

    return timed


async def _refuse(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 400)
    # The SDK takes a conflict for a lock that will open, and would ask again for minutes.
    headers = {"x-should-retry": "false"} if status == 409 else {"connection": "close"} if status in {408, 413} else {}
    return refusal(status, str(error), **headers)


async def _busy(request: Request, error: Exception) -> Response:
    return refusal(429, str(error), **{"Retry-After": "1"})


async def _gone(request: Request, error: Exception) -> Response:
    return refusal(499, "the client went away before its request was complete")


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed unexpectedly", request.method, request.url.path, exc_info=error)
    return refusal(500, f"an unexpected {type(error).__name__} in the engine; its log has the details")


async def _malformed(request: Request, error: Exception) -> Response:
    problems = error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else []
    places = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems[:5])
    return refusal(422, f"the request does not fit its type: {places}")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return refusal(404, f"this engine has no {request.method} {request.url.path}")
    return refusal(status, error.detail if isinstance(error, HTTPException) else str(error))
