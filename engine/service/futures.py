"""Promises for work under way: a client asks for one by id, as often as it likes, over as many connections."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from ..interface import RequestRejectedError
from ..wire import Encoded

# A result is kept for a client that lost its connection; then its memory is freed.
_KEPT_S = 600.0
_MOST_KEPT_BYTES = 512 * 1024 * 1024


class ConflictError(RequestRejectedError):
    """The request contradicts what is there: the same number was another request's, or the change was made before."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no result. ``user``: it was wrong; ``server``: we could not."""

    message: str
    category: Literal["user", "server"]


@dataclass(slots=True)
class Promise:
    """One request. ``result``: a protobuf message, one of the SDK's answers, or what else was asked for.

    ``payload`` is a digest of what was sent, by which the same request is known when it comes again.
    """

    request_id: str
    sampler: str | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    result: Any = None
    failure: Failure | None = None
    finished: float = 0.0
    cancelled: bool = False
    paused: str | None = None
    payload: bytes | None = None

    def same_payload(self, payload: bytes) -> None:
        """Note what was sent, or check that it is what was sent before.

        Raises:
            ConflictError: If it is not.
        """
        if self.payload is None:
            self.payload = payload
        elif self.payload != payload:
            raise ConflictError(
                f"the sequence number of {self.request_id} was used before, for another request: each has its own"
            )

    def settle(self, outcome: Any) -> None:
        """Give the result, or the `Failure` that there is instead, and wake everybody who waits."""
        if isinstance(outcome, Failure):
            self.failure = outcome
        else:
            self.result = outcome
        self.finished = time.monotonic()
        self.done.set()

    @property
    def nbytes(self) -> int:
        """Bytes of its result."""
        return len(self.result.payload) if isinstance(self.result, Encoded) else 0


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A sampling request that ended: what is kept of it for those who poll their session."""

    request_id: str
    failed: bool
    nbytes: int


class Promises:
    """All promises by request id, and for each sampling session the order in which its requests finished."""

    def __init__(self) -> None:
        self._all: dict[str, Promise] = {}
        self._finished: dict[str, list[FinishedRequest]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._kept_bytes = 0

    def get(self, request_id: str) -> Promise | None:
        """The promise with this id, or None if there never was one, or its result has expired."""
        return self._all.get(request_id)

    def started_with(self, prefix: str) -> list[Promise]:
        """The promises whose id begins so: those of one session, or of one adapter."""
        return [promise for request_id, promise in self._all.items() if request_id.startswith(prefix)]

    def open(self, request_id: str, *, sampler: str | None = None) -> Promise:
        """A new promise; ``sampler`` is the sampling session that polls for it."""
        self._expire()
        promise = Promise(request_id, sampler)
        self._all[request_id] = promise
        return promise

    def finished(self, promise: Promise) -> None:
        """Note a finished promise for those who poll its sampling session."""
        self._kept_bytes += promise.nbytes
        if promise.sampler is not None:
            done = FinishedRequest(promise.request_id, promise.failure is not None, promise.nbytes)
            self._finished.setdefault(promise.sampler, []).append(done)
            self._news.setdefault(promise.sampler, asyncio.Event()).set()

    def forget(self, request_ids: Iterable[str]) -> None:
        """Free results that their client has."""
        for request_id in request_ids:
            promise = self._all.get(request_id)
            if promise is not None and promise.done.is_set():
                self._kept_bytes -= promise.nbytes
                del self._all[request_id]

    def drop_sampler(self, sampler: str) -> None:
        """Forget a sampling session's list of finished requests."""
        self._finished.pop(sampler, None)
        self._news.pop(sampler, None)

    def since(self, sampler: str, cursor: int) -> list[FinishedRequest]:
        """What a sampling session finished after the first ``cursor``."""
        return self._finished.get(sampler, [])[cursor:]

    async def news(self, sampler: str, timeout_s: float) -> None:
        """Wait until a sampling session finishes something more."""
        event = self._news.setdefault(sampler, asyncio.Event())
        event.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), timeout_s)

    def _expire(self) -> None:
        """Forget old results; dictionaries keep insertion order, so the oldest come first."""
        now = time.monotonic()
        for request_id, promise in list(islice(self._all.items(), 16)):
            old = now - promise.finished > _KEPT_S or self._kept_bytes > _MOST_KEPT_BYTES
            if not (promise.done.is_set() and old):
                break
            self.forget([request_id])
