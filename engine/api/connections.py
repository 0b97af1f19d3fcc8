"""Connections of the HTTP server: a bounded number, and none that is kept open by half a request."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# A client on a slow link sends the head of a request within this; a connection without one is closed.
HEAD_TIMEOUT_S = 20.0
# Each part of a body comes within this, and all of it within that.
BODY_PAUSE_S, BODY_TIMEOUT_S = 30.0, 600.0
MOST_CONNECTIONS = 2048
# Descriptors for files and everything else.
_SPARE_DESCRIPTORS = 128


def most_connections() -> int:
    """As many as the process may open, at most ``MOST_CONNECTIONS``; raises the process's own limit if it can."""
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (
        MOST_CONNECTIONS
        if soft == resource.RLIM_INFINITY
        else max(16, min(MOST_CONNECTIONS, soft - _SPARE_DESCRIPTORS))
    )


class BoundedConnection(H11Protocol):
    """A connection that is closed if its next request does not begin in time.

    Where there are too many, the one that has kept us waiting for longest is closed for the new one.
    """

    most = MOST_CONNECTIONS
    head_timeout_s = HEAD_TIMEOUT_S
    # Those between requests or within the head of one, by the time they began to be.
    _idle: dict[BoundedConnection, None] = {}  # noqa: RUF012  # shared on purpose
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take the connection, and expect a request."""
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > self.most:
            oldest = next(iter(self._idle))
            oldest._stop_waiting()
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on; from the end of one request on, the next one's head is waited for."""
        if self._deadline is None and self._between_requests():
            self._expect_head()
        super().data_received(data)
        if not self._between_requests():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """A connection at rest may be closed for a new one; the server's own keep-alive time bounds its rest."""
        super().on_response_complete()
        if not self._between_requests() or self.transport.is_closing():
            return
        self._idle[self] = None
        if self.conn.trailing_data[0]:  # the next one has begun already
            self._expect_head()

    def _between_requests(self) -> bool:
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.response_complete)

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._idle[self] = None
        self._deadline = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        self._idle.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
