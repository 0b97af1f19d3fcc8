"""What an estimate consists of: an interval, and a mean with its error."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        level: The confidence, such as 0.95.
        method: How it was computed, for the record.
    """

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean with what is known about its error.

    Attributes:
        mean: The mean of the items.
        standard_error: Its standard error (clustered where there are clusters), or None for fewer than two units.
        interval: Its confidence interval, or None where that is undefined.
        n: Items.
        units: Independent units: clusters, or items without clusters.
        deviation: Standard deviation of the items, or None for fewer than two.
        bounds: The ends of the scale that the interval was made for, or None where it is Student's.
        effective_n: Independent wins and losses that say as much as the items do (see `intervals.effective_size`); None
            for Student's interval.
    """

    mean: float
    standard_error: float | None
    interval: Interval | None
    n: int
    units: int
    deviation: float | None
    bounds: tuple[float, float] | None = None
    effective_n: float | None = None
