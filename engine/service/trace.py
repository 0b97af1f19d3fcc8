"""When each request waited and computed, kept for the latest ones, and drawn as a timeline."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

_MOST_SPANS = 50_000


@dataclass(frozen=True, slots=True)
class Span:
    """One computation. Times are seconds of the monotonic clock."""

    lane: str
    request_id: str
    submitted: float
    began: float
    ended: float


class Trace:
    """The latest computations of an engine."""

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=_MOST_SPANS)

    def add(self, span: Span) -> None:
        """Keep one; the oldest makes room."""
        self._spans.append(span)

    def of_session(self, session_id: str) -> dict[str, Any]:
        """A session's timeline in the trace event format that ui.perfetto.dev and chrome://tracing open.

        A row for each adapter and sampler; an event for the wait and one for the computation of each request.
        """
        spans = [span for span in self._spans if span.request_id.startswith(f"{session_id}:")]
        rows = {row: number for number, row in enumerate(dict.fromkeys(map(_row_of, spans)), start=1)}
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": row}}
            for row, number in rows.items()
        ]
        for span in spans:
            common = {"ph": "X", "pid": 1, "tid": rows[_row_of(span)], "args": {"request_id": span.request_id}}
            wait, work = span.began - span.submitted, span.ended - span.began
            events.append(common | {"name": "wait", "ts": span.submitted * 1e6, "dur": wait * 1e6})
            events.append(common | {"name": "compute", "ts": span.began * 1e6, "dur": work * 1e6})
        return {"displayTimeUnit": "ms", "traceEvents": events}


def _row_of(span: Span) -> str:
    return span.request_id.rpartition(":")[0]
