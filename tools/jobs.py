"""Looking at jobs, waiting for them, stopping them and letting them go on."""

from __future__ import annotations

import time
from typing import Annotated

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from ..core.errors import JobError
from ..core.foreign_text import named
from ..jobs import control, run_files
from ..jobs.registry import Registry
from ..jobs.states import ACTIVE, Job, JobState
from .answers import answer
from .job_view import JobLine, JobView, age, next_step, row, summary, view

# Clients cut a call at 60 s; progress every 2 s keeps those alive that watch for it.
MAX_WAIT_S = 55
_PROGRESS_S = 2.0
_POLL_S = 0.25

JobId = Annotated[str, Field(description="Such as sft-1a2b3c; list_jobs shows them")]
SinceStep = Annotated[int | None, Field(ge=0, description="Only what came after this step")]


class JobChange(BaseModel):
    """A job after it was told to stop or to go on; get_job shows the rest."""

    job_id: str
    state: str
    step: int
    total_steps: int | None
    attempt: int
    run_folder: str
    next: str


class JobList(BaseModel):
    """Jobs, newest first. ``before`` asks for the next page."""

    jobs: list[JobLine]
    counts: dict[str, int]
    before: float | None


def list_jobs(
    state: Annotated[
        str | None, Field(description="queued, starting, running, succeeded, failed, cancelled, interrupted")
    ] = None,
    limit: Annotated[int, Field(ge=1, le=100, description="Jobs at most")] = 20,
    before: Annotated[float | None, Field(description="From the last answer, for older jobs")] = None,
) -> Annotated[CallToolResult, JobList]:
    """List training jobs, newest first, with their state and progress.

    Use it first for "my run" without an id: how it is doing, what was trained and when, which one is meant. Not for one
    job's numbers: get_job.
    """
    registry = Registry()
    control.sweep(registry)
    jobs = registry.find(states=[_state(state)] if state else [], limit=limit + 1, before=before)
    page = jobs[:limit]
    more = page[-1].created if len(jobs) > limit else None
    counts = {s.value: n for s, n in registry.counts().items()}
    content = JobList(
        jobs=[JobLine(**row(job), parents=registry.parents(job.id)) for job in page], counts=counts, before=more
    )
    return answer(content, _list_text(page, content.jobs, counts))


def get_job(job_id: JobId, since_step: SinceStep = None) -> Annotated[CallToolResult, JobView]:
    """Show the status of one job now: progress, latest numbers, alerts, checkpoints, and what to do next.

    Use it for a look now. To wait for progress use wait_for_job instead of calling this in a loop.
    """
    job = view(control.look(Registry(), job_id), since_step=since_step)
    return answer(job, summary(job))


async def wait_for_job(
    job_id: JobId,
    ctx: Context,
    timeout_s: Annotated[float, Field(gt=0, le=MAX_WAIT_S, description="Seconds at most")] = 50,
    since_step: SinceStep = None,
) -> Annotated[CallToolResult, JobView]:
    """Wait until a job ends, raises a warning, or the time is up; reports progress meanwhile.

    Use it to let the user know when a job is finished or goes wrong: after a start, and again with since_step while the
    state is queued, starting or running. For a look without waiting use get_job.
    """
    registry = Registry()
    deadline = time.monotonic() + timeout_s
    job = await anyio.to_thread.run_sync(control.look, registry, job_id)
    troubles = _troubles(job)
    reported = 0.0
    while job.state in ACTIVE and time.monotonic() < deadline and not _needs_a_look(job, troubles):
        if time.monotonic() - reported >= _PROGRESS_S:
            await ctx.report_progress(job.step, job.total_steps, _progress_message(job))
            reported = time.monotonic()
        await anyio.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))
        job = await anyio.to_thread.run_sync(control.look, registry, job_id)
    looked_at = await anyio.to_thread.run_sync(lambda: view(job, since_step=since_step))
    return answer(looked_at, summary(looked_at))


def cancel_job(
    job_id: JobId,
    hard: Annotated[bool, Field(description="Kill it now, without a checkpoint")] = False,
) -> Annotated[CallToolResult, JobChange]:
    """Stop or kill a queued or running job. It writes a checkpoint first, so resume_job can go on from there.

    Use it with an id, which list_jobs finds; hard=true only if a graceful cancel does not end it.
    """
    job = control.cancel(Registry(), job_id, hard=hard)
    if job.state not in ACTIVE:
        return answer(JobChange(**row(job), next=next_step(job)), summary(view(job)))
    follow = f"wait_for_job(job_id='{job.id}') until it is cancelled"
    text = f"{job.id} was asked to stop: it saves a checkpoint first.\nNext: {follow}"
    return answer(JobChange(**row(job), next=follow), text)


def resume_job(
    job_id: JobId,
    max_cost_usd: Annotated[float | None, Field(description="A new cap for the whole job")] = None,
) -> Annotated[CallToolResult, JobChange]:
    """Let a failed, cancelled or interrupted job go on from its last complete checkpoint, under the same id.

    Use it after a crash, a reboot, a cancel_job, a reached cost cap, or when the cause that get_job named is fixed.
    Not for other settings: start a new job.
    """
    job = control.resume(Registry(), job_id, max_cost_usd=max_cost_usd)
    return answer(JobChange(**row(job), next=next_step(job)), summary(view(job)))


def _state(name: str) -> JobState:
    try:
        return JobState(name)
    except ValueError as error:
        raise JobError(f"there is no state '{name}'", fix=f"States: {', '.join(JobState)}") from error


def _list_text(jobs: list[Job], lines_of_jobs: list[JobLine], counts: dict[str, int]) -> str:
    if not jobs:
        return "No jobs. Next: start_sft(config=...) starts one; template://sft is a config that runs as it is."
    lines = [", ".join(f"{n} {state}" for state, n in sorted(counts.items()))]
    for job, one in list(zip(jobs, lines_of_jobs, strict=True))[:12]:
        steps = f"{job.step}/{job.total_steps}" if job.total_steps else f"{job.step}"
        made_from = ", ".join(dict.fromkeys(link.job_id for link in one.parents))
        lines.append(f"{job.id}  {job.state:<11}  step {steps:<11}  {age(job.created):<14}  {named(job.name)}")
        lines[-1] += f"  from {made_from}" if made_from else ""
    lines.append(f"Next: {next_step(jobs[0])}")
    return "\n".join(lines)


def _troubles(job: Job) -> list[float]:
    return [alert.time for alert in run_files.alerts(job.folder) if alert.level != "info"]


def _needs_a_look(job: Job, troubles: list[float]) -> bool:
    """Whether there is something new to see, or the job waits for the one that waits for it."""
    return _troubles(job) != troubles or run_files.is_parked(job.folder)


def _progress_message(job: Job) -> str:
    values = run_files.latest_values(run_files.recent_metrics(job.folder, limit=1))
    now = f", loss {values['train_mean_nll']:.4f}" if "train_mean_nll" in values else ""
    now += f", {values['rows/made']:,.0f} rows made" if "rows/made" in values else ""
    return f"{job.state.value}: step {job.step}{f' of {job.total_steps}' if job.total_steps else ''}{now}"
