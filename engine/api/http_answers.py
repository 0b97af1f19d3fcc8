"""What every handler shares: reading a request, answering it, refusing it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar, cast

import zstandard
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..interface import RequestRejectedError
from ..json_fields import Fields
from ..service.futures import Promise
from ..service.service import Engine

# Most of a body that is held: tensors as bytes, and JSON, which takes twenty times as much memory as it has bytes.
MOST_BODY_BYTES = 256 * 1024 * 1024
MOST_JSON_BYTES = 32 * 1024 * 1024
_LONGEST_TEXT = 4096
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Handler = Callable[[Request], Awaitable[Response]]
BodyT = TypeVar("BodyT", bound=BaseModel)


class BodyTooLargeError(RequestRejectedError):
    """The body is larger than this engine takes."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the body is larger than {most:,} bytes: send less at once")


class SlowBodyError(RequestRejectedError):
    """The body did not come in time."""


def post(path: str, handler: Handler) -> Route:
    """A route of the protocol that takes a POST."""
    return Route(f"/api/v1/{path}", handler, methods=["POST"])


def engine_of(request: Request) -> Engine:
    """The engine behind a request."""
    return request.app.state.engine


async def body_of(request: Request, most: int = MOST_BODY_BYTES) -> bytes:
    """The whole body, decompressed; never more than ``most`` bytes of it are held.

    Raises:
        RequestRejectedError: If it is larger than allowed, or not what its encoding says.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > most:
            raise BodyTooLargeError(most)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity":
        return bytes(raw)
    if encoding != "zstd":
        raise RequestRejectedError("the body's Content-Encoding is unknown here: send it as it is, or as zstd")
    return await asyncio.to_thread(_decompressed, bytes(raw), most)  # others are served meanwhile


def _decompressed(raw: bytes, most: int) -> bytes:
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        plain = reader.read(most + 1)
    except zstandard.ZstdError as error:
        raise RequestRejectedError("the body is not zstd, as its encoding says") from error
    if len(plain) > most:
        raise BodyTooLargeError(most)
    return plain


async def json_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty one.

    Raises:
        RequestRejectedError: If it is not one.
    """
    return parsed(await body_of(request, MOST_JSON_BYTES))


def parsed(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestRejectedError: If it is not one, or holds what JSON has not (NaN, halves of a character pair).
    """
    try:
        value = json.loads(body or b"{}", parse_constant=_refuse_constant)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise RequestRejectedError("the body is not JSON in UTF-8, or has half a character pair (\\ud800)") from error
    except RecursionError as error:
        raise RequestRejectedError("the body is nested too deeply") from error
    except ValueError as error:
        raise RequestRejectedError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestRejectedError("the body is not a JSON object")
    return cast("dict[str, Any]", value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has no {name}")


async def typed_body(request: Request, kind: type[BodyT]) -> tuple[BodyT, bytes]:
    """The body as one of the SDK's requests, and as it came. Nothing is converted: ``true`` is no number.

    Raises:
        ValidationError: If it is not such a request.
        RequestRejectedError: If it is too large, or not JSON.
    """
    body = await body_of(request, MOST_JSON_BYTES)
    parsed(body)
    return kind.model_validate_json(body or b"{}", strict=True), body


async def text_field(request: Request, key: str) -> str:
    """The one field that a short body is about.

    Raises:
        RequestRejectedError: If it is not there, not text, or longer than any name.
    """
    return short(Fields(await json_of(request), "the request").text(key), key)


def short(text: str, key: str) -> str:
    """A name, which is never long.

    Raises:
        RequestRejectedError: If it is.
    """
    if len(text) > _LONGEST_TEXT:
        raise RequestRejectedError(f"'{key}' has {len(text):,} characters, and no name has more than {_LONGEST_TEXT:,}")
    return text


def answer(model: BaseModel) -> Response:
    """One of the SDK's response types as JSON."""
    return JSONResponse(model.model_dump(mode="json"))


def promised(promise: Promise, path: str, body: bytes, **extra: Any) -> Response:
    """The id under which a result can be fetched.

    Raises:
        ConflictError: If the promise is of another request than this one.
    """
    promise.same_payload(hashlib.blake2b(path.encode() + b"\0" + body, digest_size=16).digest())
    return JSONResponse({"request_id": promise.request_id, **extra})


def refusal(status: int, message: str, **headers: str) -> JSONResponse:
    """An error as the SDK reads it."""
    return JSONResponse({"detail": message, "error": message}, status_code=status, headers=headers)
