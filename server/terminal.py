"""Jobs for a person in a terminal: listing, showing, following, stopping them, and reading what they wrote."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ..jobs import control, run_files
from ..jobs.registry import Registry
from ..jobs.states import ACTIVE, Job, JobState
from ..tools.answers import number
from ..tools.job_view import SERIES, age, next_step, summary, view
from .output import columns, in_commands, show, show_json

if TYPE_CHECKING:
    from mcp_types import CallToolResult

_COLOURS = {
    JobState.QUEUED: "cyan",
    JobState.STARTING: "cyan",
    JobState.RUNNING: "blue",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.INTERRUPTED: "magenta",
}
_FOLLOW_S = 0.2
# Without a terminal a line is printed for a new state, and for new steps at most this often.
_LINE_S = 2.0
_SHOWN_STEPS = 10


def list_jobs(state: str | None, limit: int, *, as_json: bool) -> int:
    """Print the newest jobs, newest first."""
    from ..tools import jobs as tool

    if as_json:
        return show_answer(tool.list_jobs(state=state, limit=limit))
    registry = Registry()
    control.sweep(registry)
    jobs = registry.find(states=[JobState(state)] if state else [], limit=limit)
    if not jobs:
        kind = f"No {state} jobs." if state else "No jobs yet."
        show(f"{kind} `ml-researcher demo` runs some; `ml-researcher run template://sft` starts one.")
        return 0
    rows = [
        (job.id, str(job.state), _steps(job), age(job.created), job.base_model, job.backend, job.name) for job in jobs
    ]
    head, *lines = columns(("job", "state", "step", "created", "model", "backend", "name"), rows).splitlines()
    click.echo(click.style(head, bold=True))
    for job, line in zip(jobs, lines, strict=True):
        before, name, after = line.partition(str(job.state))
        click.echo(before + click.style(name, fg=_COLOURS[job.state]) + after)
    return 0


def show_job(job_id: str, *, as_json: bool = False) -> int:
    """Print one job: its summary, and its last metrics."""
    job = control.look(Registry(), job_id)
    seen = view(job)
    if as_json:
        show_json(seen.model_dump(mode="json"))
        return 0
    seen.next = next_command(job)
    show(summary(seen))
    if latest := seen.series[-_SHOWN_STEPS:]:
        names = [name for name in SERIES if any(name in record for record in latest)]
        rows = [[number(record[name]) if name in record else "" for name in names] for record in latest]
        show(f"\n{columns(names, rows)}")
    return 0


def next_command(job: Job) -> str:
    """What a person may do next with a job."""
    if job.state is JobState.FAILED:
        return (
            f"`ml-researcher logs {job.id}` says more; when the cause is gone: `ml-researcher jobs {job.id} --resume`"
        )
    if job.state is JobState.SUCCEEDED and job.kind == "reward_model":
        part = f"rewards=[{{type: preference_model, checkpoint: {job.id}}}]"
        return f"`ml-researcher run CONFIG '{part}'` trains against it"
    return in_commands(next_step(job))


def follow_job(job_id: str, *, as_json: bool = False) -> int:
    """Show progress until the job ends, then the job; Ctrl-C leaves the job running.

    Returns:
        0 if it has succeeded, else 1; 130 after Ctrl-C.
    """
    try:
        job = _watched(job_id, quiet=as_json)
    except KeyboardInterrupt:
        stop = f"`ml-researcher jobs {job_id} --cancel` stops it"
        show(f"\n{job_id} goes on. `ml-researcher jobs {job_id} --follow` follows it again; {stop}.", error=True)
        return 130
    show_job(job_id, as_json=as_json)
    return 0 if job.state is JobState.SUCCEEDED else 1


def _watched(job_id: str, *, quiet: bool) -> Job:
    """The job when it has ended, its progress shown meanwhile: a bar on a terminal, elsewhere lines."""
    if not quiet and sys.stdout.isatty():
        return _with_bar(job_id)
    job, printed, printed_at = control.look(Registry(), job_id), None, 0.0
    for job in _looks(job_id):
        due = printed != (job.state, job.step) and time.monotonic() - printed_at >= _LINE_S
        if not quiet and (printed is None or job.state is not printed[0] or due):
            show(_progress(job))
            printed, printed_at = (job.state, job.step), time.monotonic()
    return job


def _with_bar(job_id: str) -> Job:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    job = control.look(Registry(), job_id)
    text = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*text, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task(job_id, total=job.total_steps)
        for job in _looks(job_id):
            progress.update(bar, description=f"{job.id} {job.state}", total=job.total_steps, completed=job.step)
    return job


def _looks(job_id: str) -> Generator[Job]:
    """The job as it is now, again and again until it has ended; that look is the last."""
    registry = Registry()
    while True:
        job = control.look(registry, job_id)
        yield job
        if job.state not in ACTIVE:
            return
        time.sleep(_FOLLOW_S)


def _steps(job: Job) -> str:
    return f"{job.step}/{job.total_steps}" if job.total_steps else str(job.step)


def _progress(job: Job) -> str:
    values = run_files.latest_values(run_files.recent_metrics(job.folder, limit=1))
    known = [f"{name} {number(values[name])}" for name in SERIES if name in values and name != "step"]
    return ", ".join([f"{job.id} {job.state}: step {_steps(job)}", *known])


def cancel_job(job_id: str, *, hard: bool, as_json: bool = False) -> int:
    """Stop a job."""
    from ..tools import jobs as tool

    if as_json:
        return show_answer(tool.cancel_job(job_id, hard=hard))
    job = control.cancel(Registry(), job_id, hard=hard)
    waiting = "asked to stop; it saves a checkpoint first" if job.state in ACTIVE else str(job.state)
    show(f"{job.id}: {waiting}")
    return 0


def resume_job(job_id: str, *, max_cost_usd: float | None = None, as_json: bool = False) -> int:
    """Let a stopped job go on, perhaps with a new cap on what it may cost in all."""
    from ..tools import jobs as tool

    if as_json:
        return show_answer(tool.resume_job(job_id, max_cost_usd=max_cost_usd))
    job = control.resume(Registry(), job_id, max_cost_usd=max_cost_usd)
    show(f"{job.id}: {job.state} (attempt {job.attempt}). Next: {next_command(job)}")
    return 0


def show_logs(job_id: str, *, lines: int | None, follow: bool, as_json: bool) -> int:
    """Print what a job's process wrote; with ``follow`` also what it writes until it ends."""
    job = control.look(Registry(), job_id)
    try:
        for line in _log_lines(job, lines, follow=follow):
            show_json({"job_id": job.id, "line": line}, indent=None) if as_json else show(line)
    except KeyboardInterrupt:
        if job.state in ACTIVE:
            show(f"\n{job.id} goes on.", error=True)
        return 130
    return 0


def _log_lines(job: Job, lines: int | None, *, follow: bool) -> Generator[str]:
    """The last ``lines`` lines of the log (None: all), then those that are added while the job is active."""
    position, rest = 0, b""
    for _ in _looks(job.id) if follow else (job,):
        with suppress(FileNotFoundError), (job.folder / run_files.LOG).open("rb") as file:
            file.seek(position)
            *whole, rest = (rest + file.read()).split(b"\n")
            yield from map(_decoded, whole if position or lines is None else whole[-lines:])
            position = file.tell()
    if rest:
        yield _decoded(rest)


def _decoded(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", errors="replace")


def show_answer(result: CallToolResult) -> int:
    """Print a tool's structured answer as JSON."""
    content: dict[str, Any] = result.structured_content or {}
    show_json(content)
    return 0
