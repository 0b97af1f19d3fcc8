"""Jobs for a person in a terminal: the same answers the tools give, drawn with rich."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sota_ml_researcher.jobs import control, watch
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import ACTIVE, Job, JobState
from sota_ml_researcher.tools.answers import number
from sota_ml_researcher.tools.job_view import age, summary, view

_COLOURS = {
    JobState.QUEUED: "cyan",
    JobState.STARTING: "cyan",
    JobState.RUNNING: "blue",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.INTERRUPTED: "magenta",
}
_FOLLOW_S = 0.5


def list_jobs(limit: int) -> int:
    """Print the newest jobs as a table."""
    registry = Registry()
    watch.sweep(registry)
    jobs = registry.list(limit=limit)
    console = Console()
    if not jobs:
        console.print("No jobs yet. `ml-researcher demo` runs one; an assistant starts them with start_sft.")
        return 0
    table = Table("job", "state", "step", "model", "backend", "created", "name")
    for job in jobs:
        steps = f"{job.step}/{job.total_steps}" if job.total_steps else str(job.step)
        state = f"[{_COLOURS[job.state]}]{job.state}[/]"
        table.add_row(job.id, state, steps, job.base_model, job.backend, age(job.created), job.name)
    console.print(table)
    return 0


def show_job(job_id: str) -> int:
    """Print one job: its summary, and its last losses."""
    console = Console()
    shown = view(watch.look(Registry(), job_id))
    console.print(summary(shown), highlight=False, markup=False)
    if shown.series:
        table = Table("step", "train NLL", "test NLL", "learning rate")
        for record in shown.series[-10:]:
            names = ("train_mean_nll", "test/nll", "learning_rate")
            table.add_row(str(record.get("step")), *(number(record[n]) if n in record else "" for n in names))
        console.print(table)
    return 0


def follow_job(job_id: str) -> int:
    """Show a progress bar until the job ends; Ctrl-C leaves the job running."""
    registry = Registry()
    job = watch.look(registry, job_id)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task(job.id, total=job.total_steps)
        while job.state in ACTIVE:
            _advance(progress, bar, job)
            time.sleep(_FOLLOW_S)
            job = watch.look(registry, job_id)
        _advance(progress, bar, job)
    show_job(job_id)
    return 0 if job.state is JobState.SUCCEEDED else 1


def cancel_job(job_id: str, *, hard: bool) -> int:
    """Stop a job."""
    job = control.cancel(Registry(), job_id, hard=hard)
    waiting = "asked to stop; it saves a checkpoint first" if job.state in ACTIVE else str(job.state)
    Console().print(f"{job.id}: {waiting}")
    return 0


def resume_job(job_id: str) -> int:
    """Let a stopped job go on."""
    job = control.resume(Registry(), job_id)
    Console().print(f"{job.id}: {job.state} (attempt {job.attempt}). Follow it: ml-researcher jobs {job.id} --follow")
    return 0


def _advance(progress: Progress, bar: object, job: Job) -> None:
    progress.update(bar, description=f"{job.id} {job.state}", total=job.total_steps, completed=job.step)  # pyright: ignore[reportArgumentType]
