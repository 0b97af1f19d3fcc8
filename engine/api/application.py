"""The engine's ASGI application: the gate before every request, and what becomes of errors."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncGenerator, Callable

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ...core.errors import ResearcherError
from ..interface import RequestRejectedError
from ..service.scheduler import BusyError
from ..service.service import Engine
from ..service.store import NoSuchCheckpointError
from . import identity, openai_api, rest, routes
from .http_answers import MOST_BODY_BYTES, refusal

_SWEEP_S = 30.0
_OPEN_PATHS = frozenset({"/api/v1/healthz"})
# Not a sign that somebody needs the engine: an idle client sends these for ever.
_BACKGROUND = frozenset({"/api/v1/session_heartbeat", "/api/v1/telemetry", "/api/v1/client/dynamic_config"})


def build_app(engine: Engine, *, api_key: str | None = None, on_idle: Callable[[], None] | None = None) -> Starlette:
    """The ASGI application.

    Args:
        engine: What it serves.
        api_key: If given, every request must carry it, or a token it was exchanged for.
        on_idle: Called every half minute while there is nothing to do.
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
        middleware=[Middleware(_Gate, engine=engine, api_key=api_key)],
        exception_handlers={
            RequestRejectedError: _refuse,
            ResearcherError: _refuse,
            BusyError: _busy,
            ValidationError: _malformed,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
        },
    )
    app.state.engine = engine
    app.state.api_key = api_key
    return app


async def _sweep(engine: Engine, on_idle: Callable[[], None] | None) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        engine.forget_silent(time.time())
        if on_idle is not None and not engine.scheduler.busy and not engine.scheduler.waiting:
            on_idle()


class _Gate:
    """Checks the key and the size of a body before anything reads it."""

    def __init__(self, app: ASGIApp, engine: Engine, api_key: str | None) -> None:
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
        if self._api_key is None or scope["path"] in _OPEN_PATHS or rest.is_signed(scope, self._api_key):
            return True
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self._api_key.encode()):
            return True
        # A token is not a credential that a new token can be had for.
        return scope["path"] != "/api/v1/auth/token" and identity.is_valid_token(given, self._api_key)


async def _refuse(request: Request, error: Exception) -> Response:
    return refusal(404 if isinstance(error, NoSuchCheckpointError) else 400, str(error))


async def _busy(request: Request, error: Exception) -> Response:
    return refusal(429, str(error), **{"Retry-After": "1"})


async def _gone(request: Request, error: Exception) -> Response:
    return refusal(499, "the client went away before its request was complete")


async def _malformed(request: Request, error: Exception) -> Response:
    problems = error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else []
    places = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems[:5])
    return refusal(422, f"the request does not fit its type: {places}")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return refusal(404, f"this engine has no {request.method} {request.url.path}")
    return refusal(status, error.detail if isinstance(error, HTTPException) else str(error))
