"""Finding jobs whose process died without a word.

Every reader of the registry calls `sweep` first, so a dead job never shows as running, whoever looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sota_ml_researcher.core.errors import JobError
from sota_ml_researcher.jobs.processes import is_alive
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import ACTIVE, Job, JobState

# Between the row and its process lies one spawn; a job without a process for longer was never started.
SPAWN_GRACE_S = 30.0
# Forty missed heartbeats. A live process that is silent for so long is stuck, and is said to be.
STALE_HEARTBEAT_S = 20.0


def sweep(registry: Registry, *, clock: Callable[[], float] = time.time) -> list[Job]:
    """Mark every active job whose process is gone as ``interrupted``; returns those found now."""
    dead = [job for job in registry.list(states=ACTIVE, limit=10_000) if _is_dead(job, clock())]
    found: list[Job] = []
    for job in dead:
        try:
            found.append(
                registry.move(job.id, [job.state], JobState.INTERRUPTED, error=_epitaph(job), **_claim_check(job))
            )
        except JobError:
            continue  # it moved on between the look and the mark
    return found


def look(registry: Registry, job_id: str, *, clock: Callable[[], float] = time.time) -> Job:
    """One job as it really is: like `Registry.get`, after the same check for that job alone."""
    job = registry.get(job_id)
    if job.state in ACTIVE and _is_dead(job, clock()):
        sweep(registry, clock=clock)
        job = registry.get(job_id)
    return job


def silence_s(job: Job, *, clock: Callable[[], float] = time.time) -> float | None:
    """Seconds since the last sign of life of an active job, when that is suspiciously long."""
    if job.state not in ACTIVE or job.heartbeat is None:
        return None
    silent = clock() - job.heartbeat
    return silent if silent > STALE_HEARTBEAT_S else None


def _is_dead(job: Job, now: float) -> bool:
    if job.pid is None:
        return now - job.queued > SPAWN_GRACE_S
    return not is_alive(job.pid, job.pid_started)


def _claim_check(job: Job) -> dict[str, int]:
    return {} if job.pid is None else {"pid": job.pid}


def _epitaph(job: Job) -> str:
    if job.pid is None:
        return "its process was never started"
    if job.state is JobState.QUEUED:
        return "its process died while it waited for a free place"
    return f"its process (pid {job.pid}) died at step {job.step} without a word: killed, out of memory, or a restart"
