"""Counting the tokens a job sends and what they cost, while it runs, and holding it to its cap.

The count is kept in the run folder (``usage.json``), so a resumed job goes on counting where it stopped. Steps that a
kill made it take twice are paid twice, and are counted twice.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..core.files import write_atomically
from .prices import PER_TOKEN, ModelPrice

USAGE = "usage.json"
# The share of a cap at which whoever watches is told.
ALERT_SHARE = 0.8
# Judges answer hundreds of times per second, and what each call took is kept with its verdict: a resume counts it again
# from there. Only what the backend is sent has to be on disk before the next step.
_JUDGES_SAVED_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by what they are billed as: trained, prompt (full rate and cached), and sampled."""

    train: int = 0
    prefill: int = 0
    cached_prefill: int = 0
    sample: int = 0

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(**{name: count + getattr(other, name) for name, count in asdict(self).items()})

    def times(self, factor: float) -> Usage:
        """So many times as much, rounded."""
        return Usage(**{name: round(count * factor) for name, count in asdict(self).items()})

    def cost(self, price: ModelPrice | None) -> float | None:
        """USD for these tokens; None when a price that is needed is unknown."""
        costs = self._costs(price or ModelPrice())
        return None if None in costs else self.known_cost(price)

    def known_cost(self, price: ModelPrice | None) -> float:
        """USD for the tokens whose price is known."""
        return sum(cost for cost in self._costs(price or ModelPrice()) if cost is not None)

    def _costs(self, price: ModelPrice) -> list[float | None]:
        used = ((getattr(self, kind), getattr(price, kind)) for kind in _KINDS)
        return [None if rate is None else tokens * rate * PER_TOKEN for tokens, rate in used if tokens]


_KINDS = tuple(f.name for f in fields(Usage))


class Meter:
    """A job's running usage and cost. Safe to call from any thread.

    Args:
        folder: The run's folder.
        price: What the job's model costs on its backend; None when unknown, or when the backend is free.
        free: Whether the backend charges nothing: the cost is then 0 instead of unknown.
        cap_usd: Where to stop; None for no cap.
    """

    def __init__(self, folder: Path, price: ModelPrice | None, *, free: bool, cap_usd: float | None) -> None:
        self._path = folder / USAGE
        self._price = ModelPrice(train=0, prefill=0, cached_prefill=0, sample=0) if free else price
        self.cap_usd = cap_usd
        # What judges outside the backend have cost; they bill in dollars, so it is kept as such.
        self._usage, self.judges_usd = _read(folder)
        self._lock = threading.Lock()  # the loop's thread counts while the heartbeat's reads and writes
        self._written = (self._usage, self.judges_usd)
        self._written_at = float("-inf")
        self._step_began = self.cost_usd or 0.0
        self._dearest_step = 0.0
        self._alerted = self._share() >= ALERT_SHARE

    @property
    def usage(self) -> Usage:
        """Everything counted so far, earlier attempts included."""
        return self._usage

    @property
    def cost_usd(self) -> float | None:
        """USD so far, judges included; None when a price is unknown."""
        tokens = self._usage.cost(self._price)
        return None if tokens is None else tokens + self.judges_usd

    @property
    def known_usd(self) -> float:
        """USD so far as far as prices are known, judges included: what counts in a cap across jobs."""
        return self._usage.known_cost(self._price) + self.judges_usd

    def count(self, *, train: int = 0, prefill: int = 0, cached_prefill: int = 0, sample: int = 0) -> None:
        """Add tokens just sent (or, for samples, received)."""
        with self._lock:
            self._usage = self._usage.plus(Usage(train, prefill, cached_prefill, sample))

    def step_done(self) -> None:
        """Note what the step cost, validations and checkpoints included: a later one may cost as much."""
        cost = self.cost_usd or 0.0
        self._dearest_step = max(self._dearest_step, cost - self._step_began)
        self._step_began = cost
        if self._usage != self._written[0] or time.monotonic() - self._written_at >= _JUDGES_SAVED_EVERY_S:
            self.save()

    def exhausted(self) -> bool:
        """Whether another step like the dearest so far would pass the cap."""
        cost = self.cost_usd
        return self.cap_usd is not None and cost is not None and cost + self._dearest_step > self.cap_usd

    def crossed_alert(self) -> bool:
        """True once, when the cost passes 80% of the cap."""
        if self._alerted or self._share() < ALERT_SHARE:
            return False
        self._alerted = True
        return True

    def save(self) -> None:
        """Write the count to the run folder."""
        state = (self._usage, self.judges_usd)
        if state != self._written:
            costs = {"judges_usd": self.judges_usd, "cost_usd": self.cost_usd, "cap_usd": self.cap_usd}
            write_atomically(self._path, json.dumps({"tokens": asdict(state[0]), **costs}, indent=2) + "\n")
            self._written, self._written_at = state, time.monotonic()

    def _share(self) -> float:
        return (self.cost_usd or 0.0) / self.cap_usd if self.cap_usd else 0.0


def read_usage(folder: Path) -> Usage:
    """What a run's folder says was used so far."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Usage, float]:
    """The tokens counted so far, and what judges have cost (USD)."""
    path = folder / USAGE
    if not path.exists():
        return Usage(), 0.0
    record = json.loads(path.read_bytes())
    return Usage(**record.get("tokens", {})), record.get("judges_usd", 0.0)
