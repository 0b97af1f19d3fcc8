# pyright: basic
# Reason: it listens inside the SDK, which has no public way to hear of a pause.
"""Saying that a backend makes us wait, instead of looking hung. Heavy: imports tinker.

The SDK retries capacity pauses, rate limits and unpaid bills by itself and only logs them. Its queue observers are
built inside its clients, so they are listened to where they are defined.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tinker.lib.api_future_impl import QueueState
from tinker.lib.internal_client_holder import InternalClientHolder
from tinker.lib.public_interfaces.sampling_client import SamplingClient
from tinker.lib.queue_state_logger import QueueStateLogger

from ..core.files import write_atomically
from .context import RunContext

WAITING = "waiting.json"
_REASONS = {
    QueueState.PAUSED_CAPACITY: "capacity",
    QueueState.PAUSED_RATE_LIMIT: "the rate limit",
}
_ONE_WAIT_S = 60.0
BILLING = "billing (402): top up in the Tinker console"


class _Watch:
    """Keeps ``waiting.json`` while the backend holds us up, and alerts once per wait."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._path = context.folder / WAITING
        self._reason: str | None = None
        self._since = 0.0
        self._last: tuple[str, float] | None = None  # the wait before this one: its reason and its end
        self._lock = threading.Lock()  # observers are called from the SDK's own threads

    def waiting(self, reason: str, detail: str | None) -> None:
        with self._lock:
            if self._reason == reason:
                return
            self._reason, now = reason, time.time()
            # Of requests side by side one may get through while the others still wait: that is one wait, not many.
            same = self._last is not None and self._last[0] == reason and now - self._last[1] < _ONE_WAIT_S
            self._since = self._since if same else now
            record = {"reason": reason, "since": self._since, "detail": detail}
            write_atomically(self._path, json.dumps(record) + "\n")
        if same:
            return
        since = time.strftime("%H:%M:%S UTC", time.gmtime(now))
        said = f": {detail}" if detail else ""
        self._context.alert("warn", f"waiting for {reason} since {since}{said}")

    def going_on(self) -> None:
        with self._lock:
            if self._reason is None:
                return
            self._last, self._reason = (self._reason, time.time()), None
            self._path.unlink(missing_ok=True)


@contextmanager
def watching_queue(context: RunContext) -> Generator[None]:
    """Report the backend's pauses for as long as the block runs."""
    watch = _Watch(context)
    logger_change, sampler_change = QueueStateLogger.on_queue_state_change, SamplingClient.on_queue_state_change
    should_pause = InternalClientHolder._should_pause_on_billing

    def observe(state: QueueState, detail: str | None) -> None:
        if state in _REASONS:
            watch.waiting(_REASONS[state], detail)
        elif state == QueueState.ACTIVE:
            watch.going_on()

    def on_logger(self: QueueStateLogger, queue_state: QueueState, queue_state_reason: str | None) -> None:
        observe(queue_state, queue_state_reason)
        logger_change(self, queue_state, queue_state_reason)

    def on_sampler(self: SamplingClient, queue_state: QueueState, queue_state_reason: str | None) -> None:
        observe(queue_state, queue_state_reason)
        sampler_change(self, queue_state, queue_state_reason)

    def on_billing(self: Any, status_code: int, *args: Any, **kwargs: Any) -> bool:
        pausing = should_pause(self, status_code, *args, **kwargs)
        if status_code == 402 and pausing:
            watch.waiting(BILLING, None)
        return pausing

    QueueStateLogger.on_queue_state_change = on_logger
    SamplingClient.on_queue_state_change = on_sampler
    InternalClientHolder._should_pause_on_billing = on_billing
    try:
        yield
    finally:
        QueueStateLogger.on_queue_state_change = logger_change
        SamplingClient.on_queue_state_change = sampler_change
        InternalClientHolder._should_pause_on_billing = should_pause
        watch.going_on()
