"""From a run to its findings, in the order of causes, and a verdict on the metric that counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .failures import Failure, failures_of, until
from .findings import KINDS, RunFinding, noise_factor
from .findings_data import data_findings, level_shift
from .findings_loss import loss_findings
from .findings_preference import preference_findings
from .findings_process import broken_finding, process_findings
from .findings_reinforcement import reinforcement_findings
from .runs import Run
from .series import Series

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
    """A run with its findings, the change of the metric that counts, what was odd about its log, and where it broke.

    The change of a run that broke is that before the first such step.
    """

    run: Run
    findings: list[RunFinding]
    change: Change | None
    notes: list[str]
    failure: Failure | None = None

    @property
    def next_experiment(self) -> str | None:
        """What to try first."""
        return self.findings[0].next_experiment if self.findings else None


def diagnose(run: Run) -> Diagnosis:
    """Read a run as an expert would: every family of findings that its kind has, in the order of causes.

    A run that broke is read up to that step; what came after counts for nothing.
    """
    notes = list(run.notes)
    longest = max((len(s) for s in run.series.values()), default=0)
    if longest < SHORT:
        notes.append(f"{longest} steps are too few to judge a curve")
    failures = failures_of(run)
    lasting = next((f for f in failures if f.lasting), None)
    sound = until(run, lasting.step) if lasting else run
    findings = curve_findings(sound)
    findings = [f for f in [*findings, *process_findings(run)] if f.borne_out]
    order = list(KINDS)
    findings.sort(key=lambda f: (f.level == "note", order.index(f.kind)))
    if failures:
        findings.insert(0, broken_finding(run, failures))
    return Diagnosis(run, findings, change_of(sound), notes, lasting)


def curve_findings(run: Run) -> list[RunFinding]:
    """What the curves show; once other rows have begun it is another run, and the rest is said of what came before."""
    shift = level_shift(run)
    if shift is None or not shift[0].borne_out:
        return _of_its_kind(run)
    made, step = shift
    before = [f for f in _of_its_kind(until(run, step)) if f.borne_out]
    # What is out of control jumps anywhere: that says nothing about the data. A reward that stays lost has collapsed.
    if any(f.kind == "lr_too_high" for f in before) or any(f.kind == "reward_collapse" for f in _of_its_kind(run)):
        return _of_its_kind(run)
    said = [replace(f, summary=f"Until step {step - 1}: {f.summary[0].lower()}{f.summary[1:]}") for f in before]
    return [made, *said]


def _of_its_kind(run: Run) -> list[RunFinding]:
    if run.kind == "rl":
        return reinforcement_findings(run)
    findings = loss_findings(run)
    if not any(f.kind in ("divergence", "lr_too_high") for f in findings):
        findings += data_findings(run)
    return findings + (preference_findings(run) if run.kind == "dpo" else [])


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
