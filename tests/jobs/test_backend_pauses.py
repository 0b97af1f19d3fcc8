"""A backend that makes a job wait: the real engine behind a proxy that answers as Tinker does when it pauses."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import pytest
from job_helpers import ended, settings, start, wait_until
from loopback_server import serving

from sota_ml_researcher.backends.connection import CLUSTER_KEY
from sota_ml_researcher.backends.embedded import engine_key, ensure_engine
from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.states import JobState
from sota_ml_researcher.tools.job_view import summary, view

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("stop_engine")]

PAUSED = {"type": "try_again", "request_id": "r", "queue_state": "paused_capacity", "queue_state_reason": "no GPUs"}


class Door:
    """What stands between the job and the engine."""

    def __init__(self) -> None:
        self.refusal: tuple[int, dict[str, Any]] | None = None
        self.refused: list[str] = []


@contextmanager
def proxy(upstream: str, door: Door) -> Generator[str]:
    client = httpx2.Client(timeout=120)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass("GET", None)

        def do_POST(self) -> None:
            self._pass("POST", self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _pass(self, method: str, body: bytes | None) -> None:
            if door.refusal and "retrieve_future" in self.path:
                door.refused.append(self.path)
                status, content = door.refusal
                self._send(status, json.dumps(content).encode(), "application/json")
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "content-length"}}
            answer = client.request(method, upstream + self.path, content=body, headers=headers)
            self._send(answer.status_code, answer.content, answer.headers.get("content-type", "application/json"))

        def _send(self, status: int, payload: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None: ...

    with client, serving(Handler) as url:
        yield url


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [((402, {"detail": "billing is not set up"}), "billing (402)"), ((408, PAUSED), "capacity")],
    ids=["unpaid", "no capacity"],
)
def test_a_pause_of_the_backend_is_said_and_ends_by_itself(
    refusal: tuple[int, dict[str, Any]],
    reason: str,
    tmp_path: Path,
    tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = Door()
    with proxy(ensure_engine(), door) as url:
        monkeypatch.setenv(CLUSTER_KEY, engine_key())
        config = settings(tmp_path, tiny_weights, num_steps=300, val_file=None, checkpoint_every=0)
        job = start(**config, backend="cluster", base_url=url)
        wait_until(job.id, lambda j: j.step >= 3)
        door.refusal = refusal
        job = wait_until(job.id, lambda j: run_files.waiting(j.folder) is not None)
        held = view(job)
        assert held.waiting is not None and reason in held.waiting
        assert "goes on by itself" in summary(held)
        door.refusal = None
        job = wait_until(job.id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    assert job.step == 300
    assert run_files.waiting(job.folder) is None
    messages = [alert.message for alert in run_files.alerts(job.folder)]
    assert sum(message.startswith(f"waiting for {reason}") for message in messages) == 1
    assert len(door.refused) < 60  # a pause, not a storm of retries
