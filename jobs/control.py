"""Looking at a job as it really is, stopping it, and letting it go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..core.errors import JobError
from ..core.files import write_atomically
from . import run_files
from .processes import is_alive, kill_session, spawn_worker
from .registry import Registry
from .states import ACTIVE, OCCUPYING, RESUMABLE, CancelRequest, Job, JobState

# Between the row and its process lies one spawn; a job without a process for longer was never started.
SPAWN_GRACE_S = 30.0
# Forty missed heartbeats: a live process that is silent for so long is stuck.
STALE_HEARTBEAT_S = 20.0


def look(registry: Registry, job_id: str, *, clock: Callable[[], float] = time.time) -> Job:
    """One job as it really is: like `Registry.get`, after `sweep` if its process is gone.

    Raises:
        JobError: If there is no such job.
    """
    job = registry.get(job_id)
    if job.state in ACTIVE and _is_dead(job, clock()):
        sweep(registry, clock=clock)
        job = registry.get(job_id)
    return job


def sweep(registry: Registry, *, clock: Callable[[], float] = time.time) -> list[Job]:
    """Mark every active job whose process is gone as ``interrupted``; returns those marked now."""
    marked: list[Job] = []
    for job in registry.find(states=ACTIVE, limit=10_000):
        if not _is_dead(job, clock()):
            continue
        try:
            reason = _exit_reason(job)
            marked.append(registry.move(job.id, [job.state], JobState.INTERRUPTED, pid=job.pid, error=reason))
        except JobError:
            continue  # it moved on between the look and the mark
    return marked


def silence_s(job: Job, *, clock: Callable[[], float] = time.time) -> float | None:
    """Seconds since the last sign of life of a working job, when that is suspiciously long."""
    if job.state not in OCCUPYING or job.heartbeat is None:
        return None
    silent = clock() - job.heartbeat
    return silent if silent > STALE_HEARTBEAT_S else None


def _is_dead(job: Job, now: float) -> bool:
    if job.pid is None:
        return now - job.queued > SPAWN_GRACE_S
    return not is_alive(job.pid, job.pid_started)


def _exit_reason(job: Job) -> str:
    if job.pid is None:
        return "its process was never started"
    if job.state is JobState.QUEUED:
        return "its process died while it waited for a free place"
    return f"its process (pid {job.pid}) died at step {job.step} without a word: killed, out of memory, or a restart"


def cancel(registry: Registry, job_id: str, *, hard: bool = False) -> Job:
    """Stop a job: gracefully (it saves a checkpoint before its next step), or at once.

    Raises:
        JobError: If there is no such job, or it has ended already.
    """
    job = look(registry, job_id)
    job = registry.request_cancel(job.id, CancelRequest.HARD if hard else CancelRequest.GRACEFUL)
    if not hard and job.state is not JobState.QUEUED:
        return job
    return _end_now(registry, job)


def _end_now(registry: Registry, job: Job) -> Job:
    """Kill the worker and end its row: a waiting job has nothing to save, a hard one may not."""
    if job.pid is not None:
        kill_session(job.pid, job.pid_started)
    try:
        how = "before it started" if job.state is JobState.QUEUED else f"at step {job.step} without a checkpoint"
        return registry.move(job.id, ACTIVE, JobState.CANCELLED, error=f"cancelled {how}")
    except JobError:
        return registry.get(job.id)  # it ended by itself in the same moment


def resume(registry: Registry, job_id: str, *, max_cost_usd: float | None = None) -> Job:
    """Queue a stopped job again; it goes on from its last complete checkpoint.

    Args:
        registry: The registry of jobs.
        job_id: The job.
        max_cost_usd: A new cap for the whole job, what it has cost already included.

    Raises:
        JobError: If there is no such job, it still runs, it has succeeded, or the cap is below what it has cost.
    """
    job = look(registry, job_id)
    if max_cost_usd is not None:
        _set_cap(job, max_cost_usd)
    return spawn_worker(registry, registry.requeue(job.id))


def _set_cap(job: Job, max_cost_usd: float) -> None:
    if job.state not in RESUMABLE:
        fix = "cancel_job it first" if job.state in ACTIVE else "Start a new job instead"
        raise JobError(f"job {job.id} is {job.state}: its cap cannot be changed now", fix=fix)
    if not (math.isfinite(max_cost_usd) and max_cost_usd > (job.cost_usd or 0.0)):
        spent = f"${job.cost_usd or 0.0:.4g}"
        raise JobError(f"the cap must be above the {spent} spent so far, got {max_cost_usd}", fix="Give a higher one")
    path = job.folder / run_files.CONFIG
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("max_cost_usd:")]
    write_atomically(path, "\n".join([*kept, f"max_cost_usd: {max_cost_usd!r}  # override: resume_job"]) + "\n")
