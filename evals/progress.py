"""How many of a job's calls are done, as its registry shows it."""

from __future__ import annotations

from dataclasses import dataclass

from sota_ml_researcher.training.run_context import RunContext


@dataclass(slots=True)
class Progress:
    """A count that the job's context hears of."""

    context: RunContext
    done: int = 0

    def one(self) -> None:
        """One more is done."""
        self.done += 1
        self.context.progress(self.done)
