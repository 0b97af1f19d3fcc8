"""The question before money is spent: a plan first, and the job only when that plan comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from ..jobs import plan_store

if TYPE_CHECKING:
    from ..backends.estimate import CostEstimate


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether one exact job may start.

    Attributes:
        kind: The kind of job, as in ``start_KIND``.
        config: Its resolved config; it has a ``backend``.
        files: Every data file it reads.
        paid: Whether it costs money for another reason than its backend (a judge's bill, say).
    """

    kind: str
    config: BaseModel
    files: Sequence[Path]
    paid: bool = False

    def needs_plan(self, plan_id: str | None) -> bool:
        """Whether the plan has to be shown and confirmed before this job may start."""
        return plan_id is None and self._charges()

    def offer(self) -> str:
        """Store the plan; returns the id that starts the job."""
        return plan_store.offer(self.kind, self._mark())

    def redeem(self, plan_id: str | None) -> None:
        """Use the plan up, if one was handed in.

        Raises:
            JobError: If it is not an open plan for exactly this job.
        """
        if plan_id is not None:
            plan_store.redeem(plan_id, self.kind, self._mark())

    def next_call(self, plan_id: str | None) -> str:
        """What to do after the plan was shown."""
        name = f"start_{self.kind}"
        if plan_id is None:
            return f"call {name} again without validate_only to start it"
        return (
            f"show the user this plan; if they agree, call {name} again with the same arguments and plan_id='{plan_id}'"
        )

    def _charges(self) -> bool:
        from ..backends.prices import load_prices

        return self.paid or load_prices().charges(str(getattr(self.config, "backend", "embedded")))

    def _mark(self) -> str:
        from ..backends.prices import load_prices

        prices = load_prices().model_dump_json()
        return plan_store.fingerprint(self.kind, self.config.model_dump(mode="json"), self.files, prices=prices)


def cost_text(cost: CostEstimate) -> str:
    """An estimate in half a line."""
    if cost.expected is None or cost.price_date is None:
        return cost.note
    low, high = cost.low or 0.0, cost.high or 0.0
    spread = f" (${low:.4g} to ${high:.4g})" if high > low else ""
    return f"${cost.expected:.4g}{spread} at prices of {cost.price_date}, {cost.note}"
