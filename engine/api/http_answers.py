"""What every handler shares: reading a request, answering it, refusing it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import zstandard
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..interface import RequestRejectedError
from ..service.futures import Promise
from ..service.service import Engine

MOST_BODY_BYTES = 256 * 1024 * 1024

Handler = Callable[[Request], Awaitable[Response]]


def post(path: str, handler: Handler) -> Route:
    """A route of the protocol that takes a POST."""
    return Route(f"/api/v1/{path}", handler, methods=["POST"])


def engine_of(request: Request) -> Engine:
    """The engine behind a request."""
    return request.app.state.engine


async def body_of(request: Request) -> bytes:
    """The whole body, decompressed; never more than ``MOST_BODY_BYTES`` of it is held.

    Raises:
        RequestRejectedError: If it is larger than allowed, or not what its encoding says.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MOST_BODY_BYTES:
            raise RequestRejectedError(f"the body is larger than {MOST_BODY_BYTES:,} bytes")
    return _decompressed(bytes(raw)) if request.headers.get("content-encoding") == "zstd" else bytes(raw)


def _decompressed(raw: bytes) -> bytes:
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        plain = reader.read(MOST_BODY_BYTES + 1)
    except zstandard.ZstdError as error:
        raise RequestRejectedError("the body is not zstd, as its encoding says") from error
    if len(plain) > MOST_BODY_BYTES:
        raise RequestRejectedError(f"the body is larger than {MOST_BODY_BYTES:,} bytes")
    return plain


async def json_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty one.

    Raises:
        RequestRejectedError: If it is not one.
    """
    try:
        value = json.loads(await body_of(request) or b"{}")
    except ValueError as error:
        raise RequestRejectedError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestRejectedError("the body is not a JSON object")
    return cast("dict[str, Any]", value)


def answer(model: BaseModel) -> Response:
    """One of the SDK's response types as JSON."""
    return JSONResponse(model.model_dump(mode="json"))


def promised(promise: Promise, **extra: Any) -> Response:
    """The id under which a result can be fetched."""
    return JSONResponse({"request_id": promise.request_id, **extra})


def refusal(status: int, message: str, **headers: str) -> JSONResponse:
    """An error as the SDK reads it."""
    return JSONResponse({"detail": message, "error": message}, status_code=status, headers=headers)
