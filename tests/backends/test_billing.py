import json
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from loopback_server import serving

from sota_ml_researcher.backends.billing import billed_by_job
from sota_ml_researcher.backends.connection import Backend
from sota_ml_researcher.backends.meter import Meter, Usage
from sota_ml_researcher.backends.prices import ModelPrice
from sota_ml_researcher.core.errors import BackendError
from sota_ml_researcher.core.paths import home
from sota_ml_researcher.jobs import costs, run_files
from sota_ml_researcher.jobs.registry import Registry

SINCE = datetime(2026, 11, 1, 10, 30, tzinfo=UTC)


def event(hour: int, session: str | None, info: dict[str, Any], cost: float | None) -> dict[str, Any]:
    start = SINCE.replace(minute=0) + timedelta(hours=hour)
    return {
        "bucket_start": start.isoformat(),
        "bucket_end": (start + timedelta(hours=1)).isoformat(),
        "session_id": session,
        "estimated_cost_usd": cost,
        "event_info": info,
    }


class Platform:
    """Answers the billing request as Tinker does; remembers the windows it was asked for."""

    def __init__(self) -> None:
        self.windows: list[tuple[datetime, datetime]] = []
        self.status = 200
        self.events: list[dict[str, Any]] = []
        self.sessions: dict[str, dict[str, Any]] = {}

    def answer(self, query: dict[str, list[str]]) -> dict[str, Any]:
        start, end = (datetime.fromisoformat(query[key][0]) for key in ("starting_on", "ending_before"))
        self.windows.append((start, end))
        inside = [e for e in self.events if start <= datetime.fromisoformat(e["bucket_start"]) < end]
        return {"data": inside, "sessions": self.sessions, "cost_data_through": None}


@pytest.fixture
def platform() -> Generator[tuple[Platform, Backend]]:
    state = Platform()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlparse(self.path)
            known = url.path.endswith("/billing/usage/events")
            body = state.answer(parse_qs(url.query)) if known and state.status == 200 else {"detail": "not allowed"}
            self._send(state.status if known else 404, body)

        def do_POST(self) -> None:
            self._send(200, {})

        def _send(self, status: int, body: Any) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None: ...

    with serving(Handler) as url:
        yield state, Backend("tinker", url, "tml-key-of-a-test")


def test_usage_is_summed_by_the_job_that_its_session_names(platform: tuple[Platform, Backend]) -> None:
    state, backend = platform
    state.sessions = {
        "s1": {"user_metadata": {"ml_researcher_job": "sft-aaaaaa"}},
        "s2": {"user_metadata": {"ml_researcher_job": "sft-aaaaaa"}},  # after a resume
        "s3": {"user_metadata": None},
    }
    state.events = [
        event(0, "s1", {"type": "training", "token_count": 1000}, 0.5),
        event(1, "s2", {"type": "training", "token_count": 500}, None),
        event(1, "s2", {"type": "sampling_prefill", "cached": True, "token_count": 70}, 0.1),
        event(1, "s2", {"type": "sampling_prefill", "cached": False, "token_count": 30}, 0.2),
        event(1, "s2", {"type": "sampling_sample", "token_count": 9}, 0.0),
        event(1, "s2", {"type": "storage", "gigabyte_hours": 1.0}, None),
        event(2, "s3", {"type": "training", "token_count": 77}, 1.0),
        event(2, None, {"type": "training", "token_count": 77}, 1.0),
    ]
    found = billed_by_job(backend, SINCE, until=SINCE + timedelta(days=20))
    assert list(found) == ["sft-aaaaaa"]
    bill = found["sft-aaaaaa"]
    assert bill.usage == Usage(train=1500, prefill=30, cached_prefill=70, sample=9)
    assert bill.cost_usd == pytest.approx(0.8)
    assert bill.unpriced_events == 1


def test_long_times_are_asked_for_in_whole_hours_and_at_most_14_days(platform: tuple[Platform, Backend]) -> None:
    state, backend = platform
    billed_by_job(backend, SINCE, until=SINCE + timedelta(days=30))
    assert len(state.windows) == 3
    assert all(end - start <= timedelta(days=14) for start, end in state.windows)
    assert all((start.minute, end.minute) == (0, 0) for start, end in state.windows)
    assert [end for _, end in state.windows[:-1]] == [start for start, _ in state.windows[1:]]


def test_a_key_without_the_right_is_told_in_one_sentence(platform: tuple[Platform, Backend]) -> None:
    state, backend = platform
    state.status = 403
    with pytest.raises(BackendError, match="may not do that") as caught:
        billed_by_job(backend, SINCE)
    assert "tml-key-of-a-test" not in str(caught.value)


def test_the_meter_and_the_bill_stand_side_by_side_and_the_bill_stays_with_the_run(
    platform: tuple[Platform, Backend],
) -> None:
    state, backend = platform
    registry = Registry()
    job = registry.create(kind="sft", name="n", backend="tinker", base_model="m", runs=home() / "runs")
    other = registry.create(kind="sft", name="n", backend="tinker", base_model="m", runs=home() / "runs")
    for one in (job, other):
        meter = Meter(one.folder, ModelPrice(train=1.0), free=False, cap_usd=None)
        meter.count(train=1000)
        meter.save()
    state.sessions = {"s1": {"user_metadata": {"ml_researcher_job": job.id}}}
    state.events = [event(0, "s1", {"type": "training", "token_count": 1010}, 0.00101)]
    rows = costs.reconcile([job, other], billed_by_job(backend, SINCE))
    assert rows[0].difference == pytest.approx(0.01)
    assert (rows[1].billed, rows[1].difference) == (None, None)
    assert run_files.billed_usd(job.folder) == 0.00101
