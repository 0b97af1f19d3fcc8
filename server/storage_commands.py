"""What jobs cost and what they keep, for a person in a terminal: costs, stored checkpoints, removing a job."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..backends.connection import TINKER_KEY, connect, remote
from ..backends.prices import load_prices
from ..core.names import BackendName
from ..jobs import control, costs, removal
from ..jobs.job_results import trained_model
from ..jobs.registry import Registry
from ..jobs.states import Job
from .output import columns, confirmed, show, show_json

if TYPE_CHECKING:
    from ..backends.billing import Billed

_DAY_S = 86_400


def show_costs(*, days: int, offline: bool, as_json: bool) -> int:
    """Print each job's metered tokens and cost, and what the platform billed for it so far."""
    since = time.time() - days * _DAY_S
    jobs = [job for job in Registry().find(limit=10_000) if job.created >= since]
    rows = costs.reconcile(jobs, {} if offline else _billed(jobs, since))
    metered = sum(row.job.cost_usd or 0.0 for row in rows)
    unknown = sum(row.job.cost_usd is None and _charges(row.job) for row in rows)
    month, as_of = Registry().spent_this_month(), load_prices().as_of
    if as_json:
        lines = [
            {
                "job_id": row.job.id,
                "state": row.job.state.value,
                "backend": row.job.backend,
                "tokens": asdict(row.metered),
                "metered_usd": row.job.cost_usd,
                "billed_usd": row.billed_usd,
                "difference": row.difference,
            }
            for row in rows
        ]
        sums = {
            "days": days,
            "metered_usd": metered,
            "unknown": unknown,
            "this_month_usd": month,
            "prices_of": str(as_of),
        }
        show_json({"jobs": lines, **sums})
        return 0
    show(
        columns(("job", "state", "tokens", "metered", "billed so far", "difference"), [_cost_row(row) for row in rows])
    )
    also = f", and {unknown} jobs of unknown cost" if unknown else ""
    show(f"Metered in {days} days: ${metered:.4g}{also}")
    show(f"This month, all jobs: ${month:.4g}. Prices of {as_of}.")
    return 0


def _cost_row(row: costs.Reconciled) -> tuple[str, ...]:
    difference = "" if row.difference is None else f"{row.difference:+.1%}"
    free = not _charges(row.job)
    metered, billed = ("free" if free and usd is None else _usd(usd) for usd in (row.job.cost_usd, row.billed_usd))
    return row.job.id, str(row.job.state), f"{sum(asdict(row.metered).values()):,}", metered, billed, difference


def _charges(job: Job) -> bool:
    return load_prices().charges(job.backend)


def list_checkpoints(backend: BackendName, base_url: str | None, *, as_json: bool) -> int:
    """Print every stored checkpoint with its size, age, expiry, monthly price, and the job that saved it."""
    from ..backends.stored_checkpoints import described, stored_checkpoints

    stored = stored_checkpoints(connect(backend, base_url), load_prices())
    saved_by = _saved_by()
    if as_json:
        show_json([asdict(each) | {"job_id": saved_by.get(each.path)} for each in stored])
        return 0
    rows = [
        (
            "?" if each.size_bytes is None else f"{each.size_bytes / 1e6:,.1f}",
            _day(each.created),
            _day(each.expires) or "never",
            _usd(each.usd_month),
            saved_by.get(each.path, ""),
            each.path,
        )
        for each in stored
    ]
    show(columns(("MB", "created", "expires", "$ per month", "job", "checkpoint"), rows))
    show(f"{described(stored)}.")
    return 0


def _saved_by() -> Mapping[str, str]:
    from ..jobs import run_files

    jobs = Registry().find(limit=10_000)
    return {path: job.id for job in jobs for saved in run_files.checkpoints(job.folder) for path in saved.paths}


def delete_checkpoints(
    backend: BackendName,
    base_url: str | None,
    *,
    paths: Sequence[str],
    keep_best: str | None,
    really: bool,
    as_json: bool,
) -> int:
    """Delete checkpoints by name, or all of a job but its latest and best; without ``really`` only name them.

    Returns:
        0; 1 if one that was named is not there.
    """
    from ..backends import stored_checkpoints

    named = tuple(paths)
    if keep_best is not None:
        job = control.look(Registry(), keep_best)
        of = trained_model(job)
        backend, base_url, named = of.backend, of.base_url, tuple(costs.superseded(job))
    connection = connect(backend, base_url)
    stored = {each.path for each in stored_checkpoints.stored_checkpoints(connection, load_prices())}
    there = [path for path in dict.fromkeys(named) if path in stored]
    gone = [path for path in dict.fromkeys(paths) if path not in stored]
    if really:
        stored_checkpoints.delete_checkpoints(connection, there)
    if as_json:
        show_json({"checkpoints": there, "deleted": really, "not_there": gone})
    else:
        for path in there:
            show(path)
        did = "deleted." if really else "would be deleted for good. Add --yes to do it."
        show(f"{len(there)} checkpoints {did}")
    for path in gone:
        show(f"ml-researcher: {backend} stores no checkpoint {path}", error=True)
    return 1 if gone else 0


def remove_job(job_id: str, *, yes: bool, keep_checkpoints: bool, as_json: bool) -> int:
    """Show what goes with a job, ask, and remove it."""
    registry = Registry()
    planned = removal.plan_removal(registry, job_id)
    show(_what_goes(planned, keep_checkpoints=keep_checkpoints), error=as_json)
    if not confirmed("Remove it for good?", yes=yes, otherwise="nothing was removed", error=as_json):
        return 1
    deleted = removal.remove(registry, planned, keep_checkpoints=keep_checkpoints)
    report: dict[str, Any] = {"job_id": job_id, "size_bytes": planned.size_bytes, "checkpoints_deleted": deleted}
    if as_json:
        show_json(report)
    else:
        show(f"{job_id} is removed, and {deleted} stored checkpoints.")
    return 0


def _what_goes(planned: removal.Removal, *, keep_checkpoints: bool) -> str:
    job = planned.job
    lines = [
        f"{job.id} ({job.name}): {job.state}, step {job.step}, {job.base_model} on {job.backend}.",
        f"Its run folder: {job.folder} ({planned.size_bytes / 1e6:.1f} MB).",
    ]
    if planned.checkpoints:
        stays = " stay, under these paths:" if keep_checkpoints else " go too, as far as they are still stored:"
        lines += [f"Its checkpoints on {job.backend}{stays}", *(f"  {path}" for path in planned.checkpoints)]
    if planned.children:
        lines.append(f"Made from it: {', '.join(f'{one.job_id} ({one.role})' for one in planned.children)}; they stay.")
    return "\n".join(lines)


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
