"""What a diagnosis consists of: findings with their evidence, rule, confidence and next experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from ..doctrine.rules import Confidence, rule
from .series import Series

Level = Literal["error", "warn", "note"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One place in the metrics: the name as logged, the step, the line of the file (0: none), and values."""

    metric: str
    step: int
    line: int
    values: Mapping[str, float]

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        line = f", line {self.line}" if self.line else ""
        return f"{self.metric} at step {self.step}{line}: {values}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a run shows.

    Attributes:
        kind: What it is, such as ``overfitting``.
        level: ``error`` (the run is spoilt), ``warn`` (act on it), ``note`` (know it).
        summary: One sentence with the numbers.
        evidence: Where it is seen.
        rule: The doctrine's rule.
        confidence: How sure the cause is; the evidence itself is measured.
        next_experiment: The one thing to try next, with what would refute the cause.
    """

    kind: str
    level: Level
    summary: str
    evidence: tuple[Evidence, ...]
    rule: str
    confidence: Confidence
    next_experiment: str


def number(rule_id: str) -> float:
    """The number a rule holds."""
    value = rule(rule_id).value
    if not isinstance(value, int | float):
        raise TypeError(f"rule {rule_id} must hold a number, got {value!r}")
    return float(value)


def numbers(rule_id: str) -> Mapping[str, float]:
    """The named numbers a rule holds."""
    return cast("Mapping[str, float]", cast("Any", rule(rule_id).value))


def point(series: Series, index: int, **more: float) -> Evidence:
    """Evidence at a reduced point of a series; -1 is the last."""
    step, line, value = series.at(index)
    return Evidence(series.name, step, line, {"value": value, **more})


def nearest(series: Series, step: int) -> int:
    """The index of the reduced point at or before a step."""
    return max(0, int(series.reduced.steps.searchsorted(step, side="right")) - 1)


def moved(series: Series, *, head: tuple[float, float], tail: tuple[float, float]) -> tuple[float, bool]:
    """How far the level moved from one stretch to another (fractions of the run), and whether beyond the noise."""
    first, first_se = series.level(*head)
    last, last_se = series.level(*tail)
    floor = number("diagnosis.noise") * (first_se**2 + last_se**2) ** 0.5
    return last - first, abs(last - first) > floor
