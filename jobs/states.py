"""What a job is and which states it can pass through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  # its worker waits for a free place on the backend
    STARTING = "starting"  # it has a place; imports, data and the backend connection are under way
    RUNNING = "running"  # steps are being taken
    SUCCEEDED = "succeeded"  # the last step is done and the final checkpoint saved
    FAILED = "failed"  # it stopped on an error, which the row holds
    CANCELLED = "cancelled"  # somebody asked it to stop
    INTERRUPTED = "interrupted"  # its process died without a word


ACTIVE = frozenset({JobState.QUEUED, JobState.STARTING, JobState.RUNNING})
OCCUPYING = frozenset({JobState.STARTING, JobState.RUNNING})
RESUMABLE = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING}) | RESUMABLE,
    JobState.STARTING: frozenset({JobState.RUNNING}) | RESUMABLE,
    JobState.RUNNING: frozenset({JobState.SUCCEEDED}) | RESUMABLE,
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
    JobState.INTERRUPTED: frozenset({JobState.QUEUED}),
}


class CancelRequest(StrEnum):
    """How a job was asked to stop."""

    NONE = ""
    GRACEFUL = "graceful"  # save a checkpoint first
    HARD = "hard"  # kill it now


@dataclass(frozen=True, slots=True)
class Link:
    """A job that another was made from. ``role``: weights (where it starts), reward, or reference (of a KL)."""

    job_id: str
    role: str


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the registry. Times are seconds since the epoch (UTC)."""

    id: str
    kind: str
    name: str
    state: JobState
    backend: str
    base_model: str
    folder: Path
    created: float
    queued: float
    started: float | None
    ended: float | None
    pid: int | None
    pid_started: float | None
    heartbeat: float | None
    step: int
    total_steps: int | None
    error: str
    cancel: CancelRequest
    attempt: int
    parent: str | None
    cost_usd: float | None
