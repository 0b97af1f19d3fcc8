"""A job's meter: which prices hold for it, and when its money is spent."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backends.connection import Backend, connect
from ..backends.meter import Meter
from ..backends.prices import load_prices
from ..core.names import BackendName
from ..core.yaml_loading import load_yaml
from .backend_waits import BackendWaits
from .context import AlertLevel, StopReason, WorkerProcess

# How often the registry hears of the cost and is asked what all jobs cost: a judge's calls come faster than that.
_TELL_EVERY_S = 0.25


class MeteredContext:
    """The worker as a recipe sees it, with a budget: it says stop before a step that could pass the cap."""

    def __init__(self, inner: WorkerProcess, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter
        self._listening = ExitStack()
        self._waits: BackendWaits | None = None
        self._step = 0
        self._stopped = False
        self._told_at = float("-inf")

    @property
    def job_id(self) -> str:
        """The id of the job being run."""
        return self._inner.job_id

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._inner.folder

    @property
    def attempt(self) -> int:
        """1 for the first run of a job, one more for each resume."""
        return self._inner.attempt

    def connect(self, name: BackendName, base_url: str | None = None) -> Backend:
        """The job's backend; what is sent there is counted, and its pauses are told to whoever watches."""
        if self._waits is None:
            # The SDK brings torch, 1.6 s and 260 MB: judging files of answers does without both.
            from ..backends.sdk_hooks import observed_queue

            self._waits = BackendWaits(self)
            self._listening.callback(self._waits.going_on)
            self._listening.enter_context(observed_queue(self._waits))
        return replace(connect(name, base_url), count=self._meter.count)

    def started(self, total_steps: int) -> None:
        """Everything is connected."""
        self._inner.started(total_steps)

    def progress(self, step: int) -> None:
        """``step`` steps are done; what was spent since the last is what a step costs."""
        if step > self._step:
            self._step = step
            self._meter.step_done()
        self._inner.progress(step)

    def alert(self, level: AlertLevel, message: str, *, step: int | None = None) -> None:
        """Tell whoever watches the job."""
        self._inner.alert(level, message, step=step)

    def spent(self, cost_usd: float) -> str | None:
        """Note the job's running cost."""
        return self._inner.spent(cost_usd)

    def judged(self, total_usd: float) -> None:
        """What judges outside the backend have cost the job so far; a resumed job counts up to it again."""
        self._meter.judges_usd = max(self._meter.judges_usd, total_usd)

    def stop_requested(self) -> str | None:
        """Why the run has to stop, the budget included."""
        asked = self._inner.stop_requested()
        if asked is not None:
            return asked
        if not self._stopped:
            self._stopped = self._budget_is_spent()
        return StopReason.BUDGET if self._stopped else None

    def settle(self) -> None:
        """Stop listening to the SDK, and write the last word on what was spent."""
        self._listening.close()
        self._meter.save()
        if self._meter.cost_usd is not None:
            self._inner.spent(self._meter.cost_usd)

    def _budget_is_spent(self) -> bool:
        cost, cap = self._meter.cost_usd, self._meter.cap_usd
        if cost is None:
            return False
        over_all = self._tell(cost)
        if self._meter.crossed_alert():
            self.alert("warn", f"${cost:.4g} of the ${cap:g} cap is spent", step=self._step)
        if over_all is None and not self._meter.exhausted():
            return False
        why = over_all or f"the next step could pass the cap of ${cap:g} (${cost:.4g} spent)"
        way_out = "resume_job with a higher max_cost_usd goes on from here"
        self.alert("warn", f"stopping: {why}; a checkpoint is saved. {way_out}", step=self._step)
        return True

    def _tell(self, cost_usd: float) -> str | None:
        now = time.monotonic()
        if now - self._told_at < _TELL_EVERY_S:
            return None
        self._told_at = now
        return self._inner.spent(cost_usd)


@contextmanager
def metered(worker: WorkerProcess, config_file: Path) -> Generator[MeteredContext]:
    """A job's context with its meter: what it sends to its backend is counted, priced and held to its cap.

    Raises:
        ConfigError: If the price file is broken, or the cap cannot be held.
    """
    settings: dict[str, Any] = dict(load_yaml(config_file).data)
    backend, cap = str(settings.get("backend") or "embedded"), settings.get("max_cost_usd")
    table = load_prices()
    price = table.model(backend, str(settings.get("base_model") or ""))
    meter = Meter(worker.folder, price, free=not table.charges(backend), cap_usd=cap)
    context = MeteredContext(worker, meter)
    try:
        yield context
    finally:
        context.settle()
