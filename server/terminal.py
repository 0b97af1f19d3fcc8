"""Jobs for a person in a terminal: the same answers the tools give, drawn with rich."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..backends.connection import TINKER_KEY, connect, remote
from ..backends.prices import load_prices
from ..core.errors import JobError
from ..core.names import BackendName
from ..jobs import control, costs
from ..jobs.job_results import trained_model
from ..jobs.registry import Registry
from ..jobs.states import ACTIVE, Job, JobState
from ..tools.answers import number
from ..tools.job_view import SERIES, age, summary, view

if TYPE_CHECKING:
    from ..backends.billing import Billed

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
    control.sweep(registry)
    jobs = registry.find(limit=limit)
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
    job = view(control.look(Registry(), job_id))
    console.print(summary(job), highlight=False, markup=False)
    if job.series:
        latest = job.series[-10:]
        names = [name for name in SERIES if any(name in record for record in latest)]
        table = Table(*names)
        for record in latest:
            table.add_row(*(number(record[name]) if name in record else "" for name in names))
        console.print(table)
    return 0


def follow_job(job_id: str) -> int:
    """Show a progress bar until the job ends; Ctrl-C leaves the job running."""
    registry = Registry()
    job = control.look(registry, job_id)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task(job.id, total=job.total_steps)
        while job.state in ACTIVE:
            _advance(progress, bar, job)
            time.sleep(_FOLLOW_S)
            job = control.look(registry, job_id)
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


def show_costs(*, days: int, offline: bool) -> int:
    """Print each job's metered tokens and cost, and what the platform billed for it so far."""
    if days < 1:
        raise JobError(f"--days must be at least 1, got {days}")
    since = time.time() - days * 86_400
    jobs = [job for job in Registry().find(limit=10_000) if job.created >= since]
    rows = costs.reconcile(jobs, {} if offline else _billed(jobs, since))
    table = Table("job", "state", "tokens", "metered", "billed so far", "difference")
    for row in rows:
        tokens = sum(asdict(row.metered).values())
        difference = "" if row.difference is None else f"{row.difference:+.1%}"
        table.add_row(
            row.job.id, row.job.state, f"{tokens:,}", _usd(row.job.cost_usd), _usd(row.billed_usd), difference
        )
    console = Console()
    console.print(table)
    total = sum(row.job.cost_usd or 0.0 for row in rows)
    unknown = sum(row.job.cost_usd is None for row in rows)
    console.print(
        f"Metered in {days} days: ${total:.4g}" + (f", and {unknown} jobs of unknown cost" if unknown else "")
    )
    console.print(f"This month, all jobs: ${Registry().spent_this_month():.4g}. Prices of {load_prices().as_of}.")
    return 0


def list_checkpoints(backend: BackendName, base_url: str | None) -> int:
    """Print every stored checkpoint with its size, age, expiry and monthly price."""
    from ..backends.stored_checkpoints import described, stored_checkpoints

    stored = stored_checkpoints(connect(backend, base_url), load_prices())
    table = Table("MB", "created", "expires", "$ per month")
    table.add_column("checkpoint", overflow="fold")
    for each in stored:
        size = "?" if each.size_bytes is None else f"{each.size_bytes / 1e6:,.1f}"
        table.add_row(size, _day(each.created), _day(each.expires) or "never", _usd(each.usd_month), each.path)
    console = Console()
    console.print(table)
    console.print(f"{described(stored)}.")
    return 0


def delete_checkpoints(
    backend: BackendName, base_url: str | None, *, paths: Sequence[str] | None, keep_best: str | None, really: bool
) -> int:
    """Delete checkpoints by name, or all of a job but its latest and best; without ``really`` only name them."""
    from ..backends import stored_checkpoints

    console = Console()
    if keep_best is not None:
        job = control.look(Registry(), keep_best)
        of = trained_model(job)
        connection = connect(of.backend, of.base_url)
        stored = {each.path for each in stored_checkpoints.stored_checkpoints(connection, load_prices())}
        paths = [path for path in costs.superseded(job) if path in stored]
    else:
        connection = connect(backend, base_url)
    for path in paths or ():
        console.print(path, highlight=False)
    if not really:
        console.print(f"{len(paths or ())} checkpoints would be deleted for good. Add --yes to do it.")
        return 0
    stored_checkpoints.delete_checkpoints(connection, paths or ())
    console.print(f"{len(paths or ())} checkpoints deleted.")
    return 0


def _billed(jobs: Sequence[Job], since: float) -> Mapping[str, Billed]:
    """The platform's bills, when there is a hosted job and a key to ask with."""
    if not any(job.backend == "tinker" for job in jobs) or not os.environ.get(TINKER_KEY):
        return {}
    from ..backends.billing import billed_by_job

    return billed_by_job(remote("tinker"), datetime.fromtimestamp(since, UTC))


def _usd(value: float | None) -> str:
    return "unknown" if value is None else f"${value:.4g}"


def _day(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M")
