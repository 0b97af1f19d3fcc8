"""What a diagnosis consists of: findings with their evidence, rule, confidence and next experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from ..doctrine.rules import Confidence, number, rule
from .series import Series, rolling_median

Level = Literal["error", "warn", "note"]
# The stretches of a run, as fractions of it, whose levels tell where a metric began and ended.
HEAD, TAIL = (0.0, 0.1), (0.85, 1.0)


@dataclass(frozen=True, slots=True)
class MetricPoint:
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
class Claim:
    """What a sentence says of a stretch of a series, so that every point of it can be asked.

    Attributes:
        series: The metric.
        start: The first step that is meant.
        end: The step before which the stretch ends; None: the end of the run.
        low: No value lies below it.
        high: No value lies above it.
        width: How many points around each one its level is the median of; 1: the points themselves.
    """

    series: Series
    start: int
    end: int | None = None
    low: float = -math.inf
    high: float = math.inf
    width: int = 1

    def holds(self) -> bool:
        """Whether the log bears it out at every point."""
        s = self.series
        part = (s.steps >= self.start) & (s.steps < self.end if self.end is not None else True)
        values = s.values[part]
        if self.width > 1 and len(values) > self.width:
            values = rolling_median(values, self.width)
        return bool(len(values) and np.all(values >= self.low) and np.all(values <= self.high))


@dataclass(frozen=True, slots=True)
class RunFinding:
    """One thing that a run shows.

    Attributes:
        kind: What it is, such as ``overfitting``.
        level: ``error`` (the run is unusable), ``warn`` (act on it), ``note`` (good to know).
        summary: One sentence with the numbers.
        evidence: Where it is seen.
        rule: The doctrine's rule.
        confidence: How sure the cause is; the evidence itself is measured.
        next_experiment: The one thing to try next, with what would refute the cause.
        claims: What the sentence says of whole stretches; one that the log refutes keeps it from being said.
    """

    kind: str
    level: Level
    summary: str
    evidence: tuple[MetricPoint, ...]
    rule: str
    confidence: Confidence
    next_experiment: str
    claims: tuple[Claim, ...] = ()

    @property
    def borne_out(self) -> bool:
        """Whether the log bears out every claim."""
        return all(claim.holds() for claim in self.claims)


class Kind(NamedTuple):
    """What the findings of one kind have in common, where the case at hand does not say otherwise."""

    level: Level
    rule: str
    confidence: Confidence


# In the order of causes: what stands earlier brings about what stands later, so the first finding is the one to act on.
KINDS: Mapping[str, Kind] = {
    "mixed_runs": Kind("warn", "diagnosis.data_problem", "high"),
    "wrong_reference": Kind("warn", "dpo.loss.start", "high"),
    "data_problem": Kind("warn", "diagnosis.data_problem", "medium"),
    "lr_too_high": Kind("warn", "diagnosis.lr_too_high", "medium"),
    "flat_from_start": Kind("warn", "diagnosis.flat_from_start", "medium"),
    "lr_too_low": Kind("warn", "diagnosis.lr_too_low", "medium"),
    "not_learned": Kind("warn", "diagnosis.not_learned", "medium"),
    "reward_collapse": Kind("error", "diagnosis.reward_collapse", "high"),
    "constant_groups": Kind("warn", "rl.constant_groups", "high"),
    "truncated": Kind("warn", "rl.truncated", "high"),
    "sampler_drift": Kind("warn", "rl.kl_mismatch", "medium"),
    "entropy_collapse": Kind("error", "rl.entropy_collapse.fraction", "high"),
    "reward_hacking": Kind("warn", "diagnosis.reward_hacking", "medium"),
    "divergence": Kind("error", "diagnosis.divergence", "high"),
    "surface_mark": Kind("warn", "dpo.surface_mark", "medium"),
    "displacement": Kind("warn", "diagnosis.displacement", "high"),
    "overoptimization": Kind("warn", "dpo.overoptimization", "high"),
    "margin_without_accuracy": Kind("warn", "dpo.margin_without_accuracy", "medium"),
    "overfitting": Kind("warn", "diagnosis.overfitting", "high"),
    "length_drift": Kind("warn", "rl.length_drift", "medium"),
    "spikes": Kind("warn", "diagnosis.spikes", "medium"),
    "under_capacity": Kind("warn", "diagnosis.under_capacity", "medium"),
    "plateau": Kind("warn", "diagnosis.plateau", "low"),
    "reward_flat": Kind("warn", "diagnosis.reward_flat", "medium"),
    "throughput": Kind("warn", "diagnosis.throughput", "medium"),
    "stalled": Kind("warn", "diagnosis.stalled", "medium"),
    "unfinished": Kind("warn", "diagnosis.unfinished", "high"),
}


def finding(
    kind: str,
    summary: str,
    evidence: tuple[MetricPoint, ...],
    next_experiment: str,
    *,
    claims: tuple[Claim, ...] = (),
    level: Level | None = None,
    rule: str | None = None,
    confidence: Confidence | None = None,
) -> RunFinding:
    """A finding of a kind in `KINDS`, whose level, rule and confidence hold where none is given."""
    usual = KINDS[kind]
    return RunFinding(
        kind,
        level or usual.level,
        summary,
        evidence,
        rule or usual.rule,
        confidence or usual.confidence,
        next_experiment,
        claims,
    )


def noise_factor() -> float:
    """By how many standard errors a change must exceed the noise (rule ``diagnosis.noise``)."""
    return number("diagnosis.noise")


def numbers(rule_id: str) -> Mapping[str, float]:
    """The named numbers a rule holds."""
    return cast("Mapping[str, float]", cast("Any", rule(rule_id).value))


def point(series: Series, index: int, **more: float) -> MetricPoint:
    """Evidence at a reduced point of a series; -1 is the last."""
    step, line, value = series.at(index)
    return MetricPoint(series.name, step, line, {"value": value, **more})


def nearest(series: Series, step: int) -> int:
    """The index of the reduced point at or before a step."""
    return max(0, int(series.reduced.steps.searchsorted(step, side="right")) - 1)


def moved(series: Series, head: tuple[float, float] = HEAD, tail: tuple[float, float] = TAIL) -> tuple[float, bool]:
    """How far the level moved from one stretch to another (fractions of the run), and whether beyond the noise."""
    first, first_se = series.level(*head)
    last, last_se = series.level(*tail)
    floor = noise_factor() * (first_se**2 + last_se**2) ** 0.5
    return last - first, abs(last - first) > floor


def rose(series: Series) -> bool:
    """Whether the level rose over the run by more than the noise."""
    change, beyond = moved(series)
    return beyond and change > 0
