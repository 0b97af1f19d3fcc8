"""Holding a job to what it may cost: its own cap, and the cap on all jobs of a month."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from ..backends.meter import Meter
from ..backends.prices import load_prices
from ..core.yaml_loading import load_yaml
from .context import Alerting

# How often the registry hears of the cost and is asked what all jobs cost: a judge's calls come faster than that.
_TELL_EVERY_S = 0.25


class Paying(Alerting, Protocol):
    """A job whose running cost is kept."""

    def spent(self, cost_usd: float, *, is_whole: bool) -> str | None:
        """Note the running cost; returns why the job must stop (a cap across jobs is reached), or None.

        ``is_whole`` is false where a price is unknown: the job costs that much at least.
        """
        ...


class Budget:
    """Says stop before a step that could pass a cap."""

    def __init__(self, job: Paying, meter: Meter) -> None:
        self._job = job
        self._meter = meter
        self._step = 0
        self._spent = False
        self._told_at = float("-inf")

    def step_done(self, step: int) -> None:
        """``step`` steps are done; what was spent since the last is what a step costs."""
        if step > self._step:
            self._step = step
            self._meter.step_done()

    def judged(self, total_usd: float) -> None:
        """What judges outside the backend have cost the job so far; a resumed job counts up to it again."""
        self._meter.judges_usd = max(self._meter.judges_usd, total_usd)

    def is_spent(self) -> bool:
        """Whether the next step could pass a cap; whoever watches is told once, and warned before."""
        self._spent = self._spent or self._look()
        return self._spent

    def settle(self) -> None:
        """Write the last word on what was spent."""
        self._meter.save()
        self._note()

    def _look(self) -> bool:
        cost, cap = self._meter.known_usd, self._meter.cap_usd
        over_all = self._tell()
        if self._meter.crossed_alert():
            self._job.alert("warn", f"${cost:.4g} of the ${cap:g} cap is spent", step=self._step)
        if over_all is None and not self._meter.exhausted():
            return False
        why = over_all or f"the next step could pass the cap of ${cap:g} (${cost:.4g} spent)"
        way_out = "resume_job with a higher max_cost_usd goes on from here"
        self._job.alert("warn", f"stopping: {why}; a checkpoint is saved. {way_out}", step=self._step)
        return True

    def _tell(self) -> str | None:
        now = time.monotonic()
        if now - self._told_at < _TELL_EVERY_S:
            return None
        self._told_at = now
        return self._note()

    def _note(self) -> str | None:
        return self._job.spent(self._meter.known_usd, is_whole=self._meter.cost_usd is not None)


def open_meter(folder: Path, config_file: Path) -> Meter:
    """The meter of a run, with the prices of its model and its cap.

    Raises:
        ConfigError: If the price file is broken.
    """
    settings: dict[str, Any] = dict(load_yaml(config_file).data)
    backend, cap = str(settings.get("backend") or "embedded"), settings.get("max_cost_usd")
    table = load_prices()
    price = table.model(backend, str(settings.get("base_model") or ""))
    return Meter(folder, price, free=not table.charges(backend), cap_usd=cap)
