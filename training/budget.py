"""A job's meter: which prices hold for it, and when its money is spent."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.training.meter import Meter
from sota_ml_researcher.training.prices import PriceTable, load_prices
from sota_ml_researcher.training.run_context import RunContext, StopReason


class PaidConfig(Protocol):
    """What a job's config says about money."""

    @property
    def base_model(self) -> str: ...  # noqa: D102
    @property
    def backend(self) -> str: ...  # noqa: D102
    @property
    def max_cost_usd(self) -> float | None: ...  # noqa: D102


def require_price_for_cap(config: PaidConfig, table: PriceTable, *, where: str = "max_cost_usd") -> None:
    """Refuse a cap that could not be held.

    Raises:
        ConfigError: If there is a cap and the model's price is unknown, or the backend charges nothing.
    """
    if config.max_cost_usd is None:
        return
    if not table.charges(config.backend):
        raise ConfigError(
            f"backend {config.backend} has no prices, so a cap means nothing", where=where, fix="Remove it"
        )
    name = config.base_model
    price = table.model(config.backend, name)
    if price is None or price.train is None:
        raise ConfigError(
            f"the price of {name} is unknown (table of {table.as_of}), so a cap cannot be held",
            where=where,
            fix="Add the model to prices.yaml (see ML_RESEARCHER_PRICES), or remove max_cost_usd",
        )


def meter_for(config: PaidConfig, folder: Path) -> Meter:
    """The meter of a job.

    Raises:
        ConfigError: If the price file is broken, or the cap cannot be held.
    """
    table = load_prices()
    require_price_for_cap(config, table)
    price = table.model(config.backend, config.base_model)
    return Meter(folder, price, free=not table.charges(config.backend), cap_usd=config.max_cost_usd)


@dataclass(slots=True)
class Budget:
    """Asks, before each step, whether there is money for it; tells the worker what was spent.

    Attributes:
        context: The worker.
        meter: The job's meter.
        step: The number of steps taken, asked when an alert is written.
    """

    context: RunContext
    meter: Meter
    step: Callable[[], int]
    _stopped: bool = False

    def stop_reason(self) -> str | None:
        """Why the run has to stop now, or None. Call it between steps."""
        asked = self.context.stop_requested()
        if asked is not None:
            return asked
        cost, cap = self.meter.cost_usd, self.meter.cap_usd
        over_all = self.context.spent(cost) if cost is not None else None
        if self.meter.crossed_alert():
            self.context.alert("warn", f"${cost:.4g} of the ${cap:g} cap is spent", step=self.step())
        if not self._stopped and (self.meter.exhausted() or over_all):
            self._stopped = True
            why = over_all or f"the next step would pass the cap of ${cap:g} (${cost:.4g} spent)"
            way_out = "resume_job with a higher max_cost_usd goes on from here"
            self.context.alert("warn", f"stopping: {why}; a checkpoint is saved. {way_out}", step=self.step())
        return StopReason.BUDGET if self._stopped else None


@contextmanager
def settled(budget: Budget) -> Generator[None]:
    """Write the last word on what was spent, however the run ends."""
    try:
        yield
    finally:
        budget.meter.save()
        if budget.meter.cost_usd is not None:
            budget.context.spent(budget.meter.cost_usd)
