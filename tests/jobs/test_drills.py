"""Kill cases: `make drill`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import anyio
import psutil
import pytest
from job_helpers import curve, ended, settings, start, wait_until
from mcp import Client, StdioServerParameters

from sota_ml_researcher.backends.embedded import ensure_engine
from sota_ml_researcher.jobs import control, run_files
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("stop_engine")]


def test_a_killed_worker_is_interrupted_and_its_resume_repeats_the_undisturbed_run(
    tmp_path: Path, tiny_weights: Path
) -> None:
    whole = wait_until(start(**settings(tmp_path, tiny_weights, num_steps=60)).id, ended)
    assert whole.state is JobState.SUCCEEDED, whole.error
    for kill_at in (1, 12, 33):
        job = start(**settings(tmp_path, tiny_weights, num_steps=60))
        job = wait_until(job.id, lambda j, at=kill_at: j.step >= at)
        assert job.pid is not None
        os.kill(job.pid, signal.SIGKILL)
        job = wait_until(job.id, ended)
        assert job.state is JobState.INTERRUPTED
        control.resume(Registry(), job.id)
        job = wait_until(job.id, ended)
        assert job.state is JobState.SUCCEEDED, job.error
        assert curve(job) == curve(whole)


def test_a_killed_server_leaves_its_job_running_and_a_new_server_finds_it(
    tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "sota_ml_researcher.server", "serve"], env=dict(os.environ)
    )

    async def first() -> str:
        async with Client(parameters) as client:
            overrides = settings(tmp_path, tiny_weights, num_steps=150)
            started = await client.call_tool("start_sft", {"overrides": overrides})
            assert started.structured_content is not None, started.content
            for child in psutil.Process().children():
                if "serve" in child.cmdline():
                    child.kill()
            return str(started.structured_content["job_id"])

    async def second(job_id: str) -> str:
        async with Client(parameters) as client:
            while True:
                found = await client.call_tool("wait_for_job", {"job_id": job_id, "timeout_s": 20})
                assert found.structured_content is not None, found.content
                if found.structured_content["state"] not in {"queued", "starting", "running"}:
                    return str(found.structured_content["state"])

    try:
        job_id = anyio.run(first)
    except BaseExceptionGroup:  # the client notices that its server is gone
        job_id = Registry().find()[0].id
    assert wait_until(job_id, lambda job: job.step >= 1).state is not JobState.FAILED
    assert anyio.run(second, job_id) == "succeeded"


def test_a_killed_engine_fails_the_job_with_a_sentence_and_a_resume_finishes_it(
    tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    job = start(**settings(tmp_path, tiny_weights, num_steps=400, checkpoint_every=20))
    wait_until(job.id, lambda j: j.step >= 50)
    os.kill(json.loads((own_home / "engine" / "engine.json").read_bytes())["pid"], signal.SIGKILL)
    job = wait_until(job.id, ended)
    assert job.state is JobState.FAILED
    assert "Traceback" not in job.error
    control.resume(Registry(), job.id)
    job = wait_until(job.id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    assert sorted(curve(job)) == list(range(401))
    assert run_files.result(job.folder) is not None


def test_a_hard_cancel_ends_the_worker_at_once(tmp_path: Path, tiny_weights: Path) -> None:
    job = start(**settings(tmp_path, tiny_weights, num_steps=500))
    wait_until(job.id, lambda j: j.step >= 3)
    assert control.cancel(Registry(), job.id, hard=True).state is JobState.CANCELLED
    control.resume(Registry(), job.id)
    wait_until(job.id, lambda j: j.step >= 3)
    control.cancel(Registry(), job.id)
    assert wait_until(job.id, ended).state is JobState.CANCELLED


def test_an_engine_too_busy_to_answer_is_waited_for(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sota_ml_researcher.backends.embedded._HEALTH_TIMEOUT_S", 0.5)
    url = ensure_engine()
    engine = psutil.Process(json.loads((own_home / "engine" / "engine.json").read_bytes())["pid"])
    engine.suspend()
    waking = threading.Timer(15, engine.resume)  # long enough for a second engine to start, and to find the store taken
    waking.start()
    try:
        assert ensure_engine() == url
    finally:
        waking.cancel()
        engine.resume()
