"""What a job will use and cost, worked out before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .meter import Usage
from .prices import PriceTable

# Of English text. Low on purpose: newer tokenizers make more tokens of a text, and an estimate should not be short.
CHARS_PER_TOKEN = 3.5


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """USD a job will cost, as a range; None throughout when a price is unknown.

    Attributes:
        low: If it ends as early as it may, or answers are as short as they may be.
        expected: The best guess.
        high: If everything is as long as the settings allow.
        usage: The expected tokens.
        price_date: The day the prices were read, ISO, or None.
        storage_gb_month: USD per gigabyte and month of kept checkpoints, or None.
        note: Who says the prices and how old they are, and what the figures leave out; or why there are none.
    """

    low: float | None
    expected: float | None
    high: float | None
    usage: Usage
    price_date: str | None
    storage_gb_month: float | None
    note: str


def estimate_cost(table: PriceTable, backend: str, model: str, usages: Sequence[Usage]) -> CostEstimate:
    """The cost of a range of usages.

    Args:
        table: The prices.
        backend: Where the job runs.
        model: The base model's name there.
        usages: Tokens at the low end, as expected, and at the high end.
    """
    low, expected, high = usages
    if not table.charges(backend):
        return CostEstimate(0.0, 0.0, 0.0, expected, None, None, "free: this backend has no prices")
    price = table.model(backend, model)
    storage = table.storage(backend)
    if price is None:
        why = f"; the published file: {table.problem}" if table.problem else ""
        note = f"unknown: {model} is not in the price table of {table.as_of} (add it to prices.yaml{why})"
        return CostEstimate(None, None, None, expected, str(table.as_of), storage, note)
    day = str(price.as_of)
    costs = [usage.cost(price) for usage in (low, expected, high)]
    if None in costs:
        return CostEstimate(None, None, None, expected, day, storage, "unknown: a price this job needs is not listed")
    per_month = f" (${storage:.2f} per GB and month)" if storage is not None else ""
    note = f"{price.age}, without checkpoint storage{per_month}"
    return CostEstimate(costs[0], costs[1], costs[2], expected, day, storage, note)
