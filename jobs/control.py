"""Stopping a job and letting it go on."""

from __future__ import annotations

import math

from sota_ml_researcher.core.errors import JobError
from sota_ml_researcher.core.files import write_atomically
from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.launch import spawn_worker
from sota_ml_researcher.jobs.processes import kill_session
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import ACTIVE, RESUMABLE, CancelRequest, Job, JobState
from sota_ml_researcher.jobs.watch import look


def cancel(registry: Registry, job_id: str, *, hard: bool = False) -> Job:
    """Stop a job: gracefully (it saves a checkpoint before its next step), or at once.

    Raises:
        JobError: If there is no such job, or it has ended already.
    """
    job = look(registry, job_id)
    if job.state not in ACTIVE:
        raise JobError(f"job {job.id} is {job.state} already", fix="Nothing to cancel; get_job shows how it ended")
    request = CancelRequest.HARD if hard else CancelRequest.GRACEFUL
    job = registry.request_cancel(job.id, request)
    if not hard and job.state is not JobState.QUEUED:
        return job
    return _end_now(registry, job)


def _end_now(registry: Registry, job: Job) -> Job:
    """Kill the worker and write the row's last word: a waiting job has nothing to save, a hard one may not."""
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
        JobError: If there is no such job, it still runs, or it has succeeded.
        ConfigError: If the cap is not a positive number, or cannot be held.
    """
    job = look(registry, job_id)
    if job.state not in RESUMABLE and job.state not in ACTIVE:
        raise JobError(f"job {job.id} has {job.state}: there is nothing left to do", fix="Start a new job instead")
    if max_cost_usd is not None:
        _set_cap(job, max_cost_usd)
    return spawn_worker(registry, registry.requeue(job.id))


def _set_cap(job: Job, max_cost_usd: float) -> None:
    if job.state in ACTIVE:
        raise JobError(f"job {job.id} is {job.state}: its cap cannot be changed now", fix="cancel_job it first")
    if not (math.isfinite(max_cost_usd) and max_cost_usd > (job.cost_usd or 0.0)):
        spent = f"${job.cost_usd or 0.0:.4g}"
        raise JobError(f"the cap must be above the {spent} spent so far, got {max_cost_usd}", fix="Give a higher one")
    path = job.folder / run_files.CONFIG
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("max_cost_usd:")]
    write_atomically(path, "\n".join([*kept, f"max_cost_usd: {max_cost_usd!r}  # override: resume_job"]) + "\n")
