"""What the platform says a job used, to compare with our own meter.

Jobs carry their id in their sessions' metadata; billing events name the session. Usage arrives hours late, so a job
without events yet is not a job that cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import tinker
from tinker import types

from .connection import Backend, backend_errors
from .meter import Usage

JOB_KEY = "ml_researcher_job"
# The platform answers for at most this long a time at once, in whole hours.
_WINDOW = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Billed:
    """What was billed for one job so far.

    Attributes:
        usage: Tokens by kind.
        cost_usd: The platform's own estimate in USD, of the events it has priced; None if it priced none.
        unpriced_events: Events with tokens and without a price yet.
        through: The end of the last hour with usage of this job.
    """

    usage: Usage
    cost_usd: float | None
    unpriced_events: int
    through: datetime


def billed_by_job(backend: Backend, since: datetime, *, until: datetime | None = None) -> dict[str, Billed]:
    """The platform's usage of each of our jobs, by job id.

    Raises:
        BackendError: If the backend refuses: the key needs the right to see billing.
    """
    billed: dict[str, Billed] = {}
    with backend_errors(backend):
        client = tinker.AdminClient(base_url=backend.base_url, api_key=backend.api_key)
        for start, end in _windows(since, until or datetime.now(UTC)):
            answer = client.get_billing_usage(start, end).result()
            for event in answer.data:
                session = answer.sessions.get(event.session_id or "")
                job_id = ((session.user_metadata if session else None) or {}).get(JOB_KEY)
                if job_id is not None:
                    billed[job_id] = _plus(billed.get(job_id), event)
    return billed


def _windows(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    start = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    last = until.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    while start < last:
        end = min(start + _WINDOW, last)
        yield start, end
        start = end


def _plus(so_far: Billed | None, event: types.BillingUsageEvent) -> Billed:
    so_far = so_far or Billed(Usage(), None, 0, event.bucket_end)
    tokens = _tokens(event)
    cost = event.estimated_cost_usd
    return Billed(
        usage=so_far.usage.plus(tokens),
        cost_usd=so_far.cost_usd if cost is None else (so_far.cost_usd or 0.0) + cost,
        unpriced_events=so_far.unpriced_events + (cost is None and tokens != Usage()),
        through=max(so_far.through, event.bucket_end),
    )


def _tokens(event: types.BillingUsageEvent) -> Usage:
    match event.event_info:
        case types.TrainingBillingEvent(token_count=count):
            return Usage(train=count)
        case types.SamplingPrefillBillingEvent(token_count=count, cached=True):
            return Usage(cached_prefill=count)
        case types.SamplingPrefillBillingEvent(token_count=count):
            return Usage(prefill=count)
        case types.SamplingSampleBillingEvent(token_count=count):
            return Usage(sample=count)
        case _:
            return Usage()
