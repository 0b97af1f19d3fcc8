"""What a recipe may ask of the worker that runs it, and tell it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ..backends.connection import Backend
from ..core.names import BackendName

AlertLevel = Literal["info", "warn", "error"]


class StopReason:
    """Why a run stops before its last step."""

    CANCEL = "cancel"
    SIGNAL = "signal"
    BUDGET = "budget"


class Alerting(Protocol):
    """A run that whoever watches it can be told about."""

    @property
    def folder(self) -> Path:
        """The run's folder, which only this worker writes to."""
        ...

    def alert(self, level: AlertLevel, message: str, *, step: int | None = None) -> None:
        """Tell whoever watches the job."""
        ...


class RunContext(Alerting, Protocol):
    """The worker, as a recipe sees it. Every method may be called from any thread."""

    @property
    def job_id(self) -> str:
        """The id of the job being run."""
        ...

    @property
    def attempt(self) -> int:
        """1 for the first run of a job, one more for each resume."""
        ...

    def connect(self, name: BackendName, base_url: str | None = None) -> Backend:
        """The job's backend (see `backends.connection.connect`); what is sent there is counted."""
        ...

    def started(self, total_steps: int) -> None:
        """Everything is connected; steps are about to be taken."""
        ...

    def progress(self, step: int) -> None:
        """``step`` steps are done."""
        ...

    def judged(self, total_usd: float) -> None:
        """What judges outside the backend have cost the job so far, earlier attempts included."""
        ...

    def stop_requested(self) -> str | None:
        """A `StopReason` when the run has to save a checkpoint and stop, else None."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a recipe ended.

    Attributes:
        finished: Whether the last step was taken.
        stopped_for: A `StopReason` if not.
        step: Steps done.
        summary: Numbers and paths for ``result.json``.
    """

    finished: bool
    stopped_for: str | None
    step: int
    summary: dict[str, object]


@dataclass(slots=True)
class Progress:
    """A count that the job's context hears of."""

    context: RunContext
    done: int = 0

    def one(self) -> None:
        """One more is done."""
        self.done += 1
        self.context.progress(self.done)
