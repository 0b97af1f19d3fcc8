import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sota_ml_researcher.jobs import control, processes
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import Job, JobState


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "jobs.db")


def running(registry: Registry, pid: int, started: float | None) -> Job:
    job = registry.create(kind="sft", name="", backend="embedded", base_model="demo", runs=registry.path.parent)
    registry.set_process(job.id, pid, started)
    registry.claim(job.id, pid, limit=9, alive=lambda *_: True)
    return registry.move(job.id, [JobState.STARTING], JobState.RUNNING, step=7)


def test_a_live_process_keeps_its_job(registry: Registry) -> None:
    job = running(registry, os.getpid(), processes.start_time_of(os.getpid()))
    assert control.sweep(registry) == []
    assert control.look(registry, job.id).state is JobState.RUNNING


def test_a_dead_process_leaves_an_interrupted_job(registry: Registry) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    job = running(registry, child.pid, processes.start_time_of(child.pid))
    child.kill()  # not waited for: a zombie is as dead as one that is gone
    while processes.start_time_of(child.pid) is not None:
        pass
    found = control.look(registry, job.id)
    child.wait()
    assert found.state is JobState.INTERRUPTED
    assert "died at step 7" in found.error


def test_a_pid_used_again_by_another_process_is_not_mistaken(registry: Registry) -> None:
    job = running(registry, os.getpid(), 1000.0)
    assert control.look(registry, job.id).state is JobState.INTERRUPTED


def test_a_step_of_the_system_clock_leaves_a_live_job_alone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(registry, os.getpid(), processes.start_time_of(os.getpid()))
    told = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: told(process) + 3600)  # it moves with the clock
    assert control.look(registry, job.id).state is JobState.RUNNING


def test_a_job_started_by_an_earlier_version_is_still_known(registry: Registry) -> None:
    job = running(registry, os.getpid(), psutil.Process().create_time())
    assert control.look(registry, job.id).state is JobState.RUNNING


def test_a_job_whose_process_never_came_is_given_up_after_the_grace(registry: Registry) -> None:
    job = registry.create(kind="sft", name="", backend="embedded", base_model="demo", runs=registry.path.parent)
    assert control.sweep(registry, clock=lambda: job.queued + control.SPAWN_GRACE_S - 1) == []
    assert [j.id for j in control.sweep(registry, clock=lambda: job.queued + control.SPAWN_GRACE_S + 1)] == [job.id]


def test_a_live_but_silent_process_is_called_stuck_not_dead(registry: Registry) -> None:
    job = running(registry, os.getpid(), processes.start_time_of(os.getpid()))
    assert job.heartbeat is not None
    later = job.heartbeat + 100
    assert control.silence_s(job, clock=lambda: later) == pytest.approx(100)
    assert control.look(registry, job.id, clock=lambda: later).state is JobState.RUNNING


def test_a_job_that_waits_for_its_place_is_not_called_stuck(registry: Registry) -> None:
    job = registry.create(kind="sft", name="", backend="embedded", base_model="demo", runs=registry.path.parent)
    registry.set_process(job.id, os.getpid(), processes.start_time_of(os.getpid()))
    job = registry.get(job.id)
    assert job.heartbeat is not None
    later = job.heartbeat + 100
    assert control.silence_s(job, clock=lambda: later) is None
