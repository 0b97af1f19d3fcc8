"""What jobs cost by our meter, beside what the platform billed, and which checkpoints of a job can go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..backends.meter import Usage, read_usage
from ..core.files import write_atomically
from . import run_files
from .states import Job

if TYPE_CHECKING:
    from ..backends.billing import Billed


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One job's meter and bill side by side.

    Attributes:
        job: The job.
        metered: Tokens we counted.
        billed: Tokens the platform has reported so far; None when nothing has arrived yet.
        billed_usd: The platform's cost estimate of them.
    """

    job: Job
    metered: Usage
    billed: Usage | None
    billed_usd: float | None

    @property
    def difference(self) -> float | None:
        """(billed - metered) / metered over all tokens; None without a bill or without tokens."""
        mine = sum(asdict(self.metered).values())
        if self.billed is None or mine == 0:
            return None
        return (sum(asdict(self.billed).values()) - mine) / mine


def reconcile(jobs: Sequence[Job], billed: Mapping[str, Billed]) -> list[Reconciled]:
    """Lay the bills beside the meters, and leave each bill in its run folder, where get_job reads it."""
    rows: list[Reconciled] = []
    for job in jobs:
        bill = billed.get(job.id)
        if bill is not None and job.folder.exists():
            content = {
                "tokens": asdict(bill.usage),
                "cost_usd": bill.cost_usd,
                "unpriced_events": bill.unpriced_events,
                "through": bill.through.isoformat(),
                "asked": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_atomically(job.folder / run_files.BILLING, json.dumps(content, indent=2) + "\n")
        row = Reconciled(job, read_usage(job.folder), bill.usage if bill else None, bill.cost_usd if bill else None)
        rows.append(row)
    return rows


def superseded(job: Job) -> list[str]:
    """Checkpoint paths of a job besides its latest and its best: what a keep-best policy lets go.

    A job that has not finished goes on from its latest checkpoint, so that one is kept at any moment.
    """
    saved = run_files.checkpoints(job.folder)
    latest = [checkpoint for checkpoint in saved if checkpoint.state_path and not checkpoint.best][-1:]
    best = [checkpoint for checkpoint in saved if checkpoint.best][-1:]
    kept = {path for checkpoint in (*latest, *best) for path in checkpoint.paths}
    stored = dict.fromkeys(path for checkpoint in saved for path in checkpoint.paths)
    return [path for path in stored if path not in kept]
