"""Stopping a job and letting it go on."""

from __future__ import annotations

from sota_ml_researcher.core.errors import JobError
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


def resume(registry: Registry, job_id: str) -> Job:
    """Queue a stopped job again; it goes on from its last complete checkpoint.

    Raises:
        JobError: If there is no such job, it still runs, or it has succeeded.
    """
    job = look(registry, job_id)
    if job.state not in RESUMABLE and job.state not in ACTIVE:
        raise JobError(f"job {job.id} has {job.state}: there is nothing left to do", fix="Start a new job instead")
    return spawn_worker(registry, registry.requeue(job.id))
