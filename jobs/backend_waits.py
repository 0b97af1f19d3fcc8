"""Saying that a backend makes a job wait, instead of looking hung."""

from __future__ import annotations

import json
import threading
import time

from ..core.files import write_atomically
from .context import Alerting
from .run_files import WAITING

_ONE_WAIT_S = 60.0


class BackendWaits:
    """Keeps ``waiting.json`` while the backend holds the job up, and alerts once per wait.

    It is what `backends.sdk_hooks.observed_queue` tells of the backend's pauses.
    """

    def __init__(self, context: Alerting) -> None:
        self._context = context
        self._path = context.folder / WAITING
        self._reason: str | None = None
        self._since = 0.0
        self._last: tuple[str, float] | None = None  # the wait before this one: its reason and its end
        self._lock = threading.Lock()  # observers are called from the SDK's own threads

    def waiting(self, reason: str, detail: str | None) -> None:
        """A request has to wait for ``reason``."""
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
        explained = f": {detail}" if detail else ""
        self._context.alert("warn", f"waiting for {reason} since {since}{explained}")

    def going_on(self) -> None:
        """Requests get through again."""
        with self._lock:
            if self._reason is None:
                return
            self._last, self._reason = (self._reason, time.time()), None
            self._path.unlink(missing_ok=True)
