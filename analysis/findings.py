"""What a diagnosis consists of: findings with their evidence, rule, confidence and next experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from ..doctrine.rules import Confidence, number, rule
from .series import Series

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
    """

    kind: str
    level: Level
    summary: str
    evidence: tuple[MetricPoint, ...]
    rule: str
    confidence: Confidence
    next_experiment: str


class Kind(NamedTuple):
    """What the findings of one kind have in common, where the case at hand does not say otherwise."""

    level: Level
    rule: str
    confidence: Confidence


KINDS: Mapping[str, Kind] = {
    "divergence": Kind("error", "diagnosis.divergence", "high"),
    "lr_too_high": Kind("warn", "diagnosis.lr_too_high", "medium"),
    "flat_from_start": Kind("warn", "diagnosis.flat_from_start", "medium"),
    "lr_too_low": Kind("warn", "diagnosis.lr_too_low", "medium"),
    "plateau": Kind("warn", "diagnosis.plateau", "low"),
    "under_capacity": Kind("warn", "diagnosis.under_capacity", "medium"),
    "spikes": Kind("warn", "diagnosis.spikes", "medium"),
    "overfitting": Kind("warn", "diagnosis.overfitting", "high"),
    "wrong_reference": Kind("warn", "dpo.loss.start", "high"),
    "displacement": Kind("warn", "diagnosis.displacement", "high"),
    "surface_mark": Kind("warn", "dpo.surface_mark", "medium"),
    "overoptimization": Kind("warn", "dpo.overoptimization", "high"),
    "mixed_runs": Kind("warn", "diagnosis.data_problem", "high"),
    "throughput": Kind("warn", "diagnosis.throughput", "medium"),
    "stalled": Kind("warn", "diagnosis.stalled", "medium"),
    "data_problem": Kind("warn", "diagnosis.data_problem", "medium"),
    "entropy_collapse": Kind("error", "rl.entropy_collapse.fraction", "high"),
    "constant_groups": Kind("warn", "rl.constant_groups", "high"),
    "sampler_drift": Kind("warn", "rl.kl_mismatch", "medium"),
    "truncated": Kind("warn", "rl.truncated", "high"),
    "reward_collapse": Kind("error", "diagnosis.reward_collapse", "high"),
    "reward_hacking": Kind("warn", "diagnosis.reward_hacking", "medium"),
    "length_drift": Kind("warn", "rl.length_drift", "medium"),
    "reward_flat": Kind("warn", "diagnosis.reward_flat", "medium"),
    "unfinished": Kind("warn", "diagnosis.unfinished", "high"),
    "margin_without_accuracy": Kind("warn", "dpo.margin_without_accuracy", "medium"),
}


def finding(
    kind: str,
    summary: str,
    evidence: tuple[MetricPoint, ...],
    next_experiment: str,
    *,
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
