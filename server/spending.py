"""Costs and stored checkpoints for a person in a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.table import Table

from sota_ml_researcher.core.errors import JobError
from sota_ml_researcher.jobs import spending, watch
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import Job
from sota_ml_researcher.training import backends
from sota_ml_researcher.training.names import BackendName
from sota_ml_researcher.training.prices import load_prices

if TYPE_CHECKING:
    from sota_ml_researcher.training.billing import Billed


def show_costs(*, days: int, offline: bool) -> int:
    """Print each job's metered tokens and cost, and what the platform billed for it so far."""
    if days < 1:
        raise JobError(f"--days must be at least 1, got {days}")
    since = time.time() - days * 86_400
    jobs = [job for job in Registry().list(limit=10_000) if job.created >= since]
    rows = spending.reconcile(jobs, {} if offline else _billed(jobs, since))
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
    from sota_ml_researcher.training.housekeeping import stored_checkpoints

    found = stored_checkpoints(backends.connect(backend, base_url), load_prices())
    table = Table("MB", "created", "expires", "$ a month")
    table.add_column("checkpoint", overflow="fold")
    for each in found:
        size = "?" if each.size_bytes is None else f"{each.size_bytes / 1e6:,.1f}"
        table.add_row(size, _day(each.created), _day(each.expires) or "never", _usd(each.usd_month), each.path)
    console = Console()
    console.print(table)
    size, price = sum(each.size_bytes or 0 for each in found), sum(each.usd_month or 0.0 for each in found)
    console.print(f"{len(found)} checkpoints, {size / 1e9:.3g} GB, ${price:.4g} a month.")
    return 0


def delete_checkpoints(
    backend: BackendName, base_url: str | None, *, paths: Sequence[str] | None, keep_best: str | None, really: bool
) -> int:
    """Delete checkpoints by name, or all of a job but its final and best; without ``really`` only name them."""
    from sota_ml_researcher.training import housekeeping

    console = Console()
    if keep_best is not None:
        job = watch.look(Registry(), keep_best)
        stored = {each.path for each in housekeeping.stored_checkpoints(_of(job), load_prices())}
        paths = [path for path in spending.superseded(job) if path in stored]
        connection = _of(job)
    else:
        connection = backends.connect(backend, base_url)
    for path in paths or ():
        console.print(path, highlight=False)
    if not really:
        console.print(f"{len(paths or ())} checkpoints would be deleted for good. Add --yes to do it.")
        return 0
    housekeeping.delete_checkpoints(connection, paths or ())
    console.print(f"{len(paths or ())} checkpoints deleted.")
    return 0


def _of(job: Job) -> backends.Backend:
    from sota_ml_researcher.core.yaml_loading import load_yaml
    from sota_ml_researcher.jobs import run_files

    base_url = load_yaml(job.folder / run_files.CONFIG).data.get("base_url")
    return backends.connect(cast("BackendName", job.backend), base_url)


def _billed(jobs: Sequence[Job], since: float) -> Mapping[str, Billed]:
    """The platform's bills, when there is a hosted job and a key to ask with."""
    if not any(job.backend == "tinker" for job in jobs) or not os.environ.get(backends.TINKER_KEY):
        return {}
    from sota_ml_researcher.training.billing import billed_by_job

    return billed_by_job(backends.remote("tinker"), datetime.fromtimestamp(since, UTC))


def _usd(value: float | None) -> str:
    return "unknown" if value is None else f"${value:.4g}"


def _day(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M")
