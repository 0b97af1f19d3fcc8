"""From a run to its findings, the worst first, and a verdict on the metric that counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .findings import RunFinding, noise_factor
from .findings_loss import loss_findings
from .findings_preference import preference_findings
from .findings_process import data_findings, process_findings
from .findings_reinforcement import reinforcement_findings
from .runs import Run
from .series import Series

LEVELS = ("error", "warn", "note")
# Shorter runs have no shape to read.
SHORT = 5
# What a run is judged by, the first that it logged, and whether lower is better.
_COUNTING = (
    ("val_reward", False),
    ("reward", False),
    ("val_loss", True),
    ("val_accuracy", False),
    ("train_loss", True),
)


@dataclass(slots=True)
class Change:
    """How far the metric that counts moved over the run.

    Attributes:
        metric: Its name as logged.
        first: Its level at the start.
        last: Its level at the end.
        floor: What a change must exceed to be one.
        best_step: The step of its best value.
        best: Its best value.
        lower_is_better: Whether a fall is a gain.
    """

    metric: str
    first: float
    last: float
    floor: float
    best_step: int
    best: float
    lower_is_better: bool

    @property
    def word(self) -> str:
        """``improved``, ``worsened`` or ``no change beyond the noise``."""
        gain = self.first - self.last if self.lower_is_better else self.last - self.first
        if abs(gain) <= self.floor:
            return "no change beyond the noise"
        return "improved" if gain > 0 else "worsened"


@dataclass(slots=True)
class Diagnosis:
    """A run with its findings, the change of the metric that counts, and what was odd about its log."""

    run: Run
    findings: list[RunFinding]
    change: Change | None
    notes: list[str]

    @property
    def next_experiment(self) -> str | None:
        """What to try first."""
        return self.findings[0].next_experiment if self.findings else None


def diagnose(run: Run) -> Diagnosis:
    """Read a run as an expert would: every family of findings that its kind has."""
    notes = list(run.notes)
    longest = max((len(s) for s in run.series.values()), default=0)
    if longest < SHORT:
        notes.append(f"{longest} steps are too few to judge a curve")
    findings = loss_findings(run) if run.kind != "rl" else []
    # A diverging loss jumps anywhere: its jumps say nothing about the data.
    if run.kind == "sft" and not any(f.kind == "divergence" for f in findings):
        findings += data_findings(run)
    if run.kind == "dpo":
        findings += preference_findings(run)
    if run.kind == "rl":
        findings += reinforcement_findings(run)
    findings += process_findings(run)
    findings.sort(key=lambda f: (LEVELS.index(f.level), ("high", "medium", "low").index(f.confidence)))
    return Diagnosis(run, findings, change_of(run), notes)


def change_of(run: Run) -> Change | None:
    """How far the metric that counts moved, and what would have been noise; None where none has two values."""
    for quantity, lower in _COUNTING:
        series = run.get(quantity, least=2)
        if series is not None:
            return measure_change(series, lower=lower)
    return None


def measure_change(series: Series, *, lower: bool) -> Change:
    """The first and the last level of a metric. Few points (validations) are taken as they are."""
    few = len(series) < 20
    first, first_se = (float(series.values[0]), series.noise) if few else series.level(0.0, 0.05)
    last, last_se = (float(series.values[-1]), series.noise) if few else series.level(0.9, 1.0)
    floor = noise_factor() * (first_se**2 + last_se**2) ** 0.5
    curve = series.reduced.values if few else series.smooth
    best = int(np.argmin(curve) if lower else np.argmax(curve))
    step = int(series.reduced.steps[best])
    return Change(series.name, first, last, floor, step, float(curve[best]), lower)
